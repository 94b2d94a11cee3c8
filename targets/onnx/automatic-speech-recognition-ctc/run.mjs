// What is said in a sound by the model in this folder, in Node, by transformers.js. Takes a WAV file of 16 bits, mono,
// at the model's rate; prints its transcript.
//
//     npm install @huggingface/transformers
//     node run.mjs sound.wav

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { AutoFeatureExtractor, AutoModelForCTC, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";
const json = (name) => JSON.parse(readFileSync(join(folder, name), "utf-8"));

function read(file, rate) {
  const bytes = readFileSync(file);
  for (let at = 12, format; at + 8 <= bytes.length; at += 8 + bytes.readUInt32LE(at + 4) + (bytes.readUInt32LE(at + 4) % 2)) {
    const name = bytes.toString("latin1", at, at + 4);
    if (name === "fmt ") format = [8, 10, 12, 22].map((place, one) => (one === 2 ? bytes.readUInt32LE(at + place) : bytes.readUInt16LE(at + place)));
    if (name !== "data") continue;
    const [kind, channels, own, bits] = format;
    if (kind !== 1 || channels !== 1 || own !== rate || bits !== 16) break;
    return Float32Array.from({ length: bytes.readUInt32LE(at + 4) / 2 }, (_, one) => bytes.readInt16LE(at + 8 + 2 * one) / 32768);
  }
  throw new Error(`${file}: convert it: ffmpeg -i ${file} -ac 1 -ar ${rate} -c:a pcm_s16le sound.wav`);
}

const extractor = await AutoFeatureExtractor.from_pretrained(folder);
const rate = extractor.config.sampling_rate;
// Without a file a rising tone is heard.
const tone = () => Float32Array.from({ length: 2 * rate }, (_, at) => 0.3 * Math.sin(2 * Math.PI * (200 + (400 * at) / rate) * (at / rate)));
const { input_values } = await extractor(process.argv[2] ? read(process.argv[2], rate) : tone());
const model = await AutoModelForCTC.from_pretrained(folder);
const { logits } = await model({ input_values });
const [, frames, width] = logits.dims;

// Greedy CTC: the likeliest character of each frame, repeats once, blanks not.
const characters = Object.fromEntries(Object.entries(json("vocab.json")).map(([word, id]) => [id, word]));
const { word_delimiter_token: space = "|", replace_word_delimiter_char: gap = " " } = json("tokenizer_config.json");
let last = -1;
let text = "";
for (let frame = 0; frame < frames; frame += 1) {
  const row = logits.data.subarray(frame * width, (frame + 1) * width);
  const best = row.reduce((so, value, at) => (value > row[so] ? at : so), 0);
  if (best !== last && best !== model.config.pad_token_id) text += characters[best] === space ? gap : (characters[best] ?? "");
  last = best;
}
console.log(text.trim());
