// Writes down what is said in a sound with the model in this folder, in Node, by transformers.js.
//
//     npm install @huggingface/transformers
//     node run.mjs sound.wav

import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

// The samples of a WAV file of 16 bits, the mean of its channels, between -1 and 1.
function readWav(file, rate) {
  const bytes = readFileSync(file);
  const told = {};
  for (let at = 12; at + 8 <= bytes.length; at += 8 + bytes.readUInt32LE(at + 4) + (bytes.readUInt32LE(at + 4) % 2)) {
    told[bytes.toString("latin1", at, at + 4)] = bytes.subarray(at + 8, at + 8 + bytes.readUInt32LE(at + 4));
  }
  const channels = told["fmt "]?.readUInt16LE(2);
  if (told["fmt "]?.readUInt32LE(4) !== rate || told["fmt "].readUInt16LE(14) !== 16) {
    throw new Error(`${file}: convert it: ffmpeg -i ${file} -ac 1 -ar ${rate} -c:a pcm_s16le sound.wav`);
  }
  const samples = new Float32Array(told.data.length / 2 / channels);
  for (let i = 0; i < samples.length * channels; i++) {
    samples[Math.floor(i / channels)] += told.data.readInt16LE(2 * i) / 32768 / channels;
  }
  return samples;
}

// Without a file a rising tone is heard.
function tone(rate) {
  return Float32Array.from({ length: 2 * rate }, (_, at) => 0.3 * Math.sin(2 * Math.PI * (200 + (400 * at) / rate) * (at / rate)));
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { language: { type: "string" }, ids: { type: "boolean", default: false } },
});
const extractor = await AutoFeatureExtractor.from_pretrained(folder);
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await WhisperForConditionalGeneration.from_pretrained(folder);
const rate = extractor.config.sampling_rate;
const sound = positionals[0] ? readWav(positionals[0], rate) : tone(rate);
const inputs = await extractor(sound);
// Of a model of several languages transformers.js takes English where none is named.
const output = await model.generate({ ...inputs, language: values.language ?? null, do_sample: false });
const special = new Set(tokenizer.all_special_ids);
const ids = output.tolist()[0].map(Number).filter((id) => !special.has(id));
console.log(values.ids ? ids.join(" ") : tokenizer.decode(ids, { skip_special_tokens: true }).trim());
