// Makes a text of another one with the model in this folder, in Node, by transformers.js.
//
//     npm install @huggingface/transformers
//     node run.mjs "The house is wonderful."

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { AutoModelForSeq2SeqLM, AutoTokenizer, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { tokens: { type: "string", short: "n", default: "40" }, ids: { type: "boolean", default: false } },
});
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForSeq2SeqLM.from_pretrained(folder);
const inputs = await tokenizer(positionals[0] ?? "The house is wonderful.");
// Always the most likely token. For chance: do_sample: true, and temperature, top_p, top_k.
const output = await model.generate({ ...inputs, max_new_tokens: Number(values.tokens), do_sample: false });
// The first is what every decoder begins with.
const ids = output.tolist()[0].slice(1).map(Number);
console.log(values.ids ? ids.join(" ") : tokenizer.decode(ids, { skip_special_tokens: true }));
