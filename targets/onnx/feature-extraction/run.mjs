// Texts' vectors by the model in this folder, in Node, by transformers.js. Prints each as a line of JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs "A sentence." "Another one."

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { AutoModel, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

import { Pooling } from "./pooling.mjs";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const texts = process.argv.length > 2 ? process.argv.slice(2) : ["A sentence.", "Another one."];
const pooling = new Pooling(folder);
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModel.from_pretrained(folder);
for (const text of texts) {
  const read = await tokenizer(pooling.text(text), { return_tensor: false, return_token_type_ids: true });
  const { last_hidden_state } = await model(fed(read, pooling.limit));
  const [states] = last_hidden_state.tolist();
  console.log(JSON.stringify(pooling.vector(states)));
}

// What the model is fed. transformers.js cuts a long text's end off with the special tokens there: here they stay.
function fed(read, limit) {
  const length = read.input_ids.length;
  const special = new Set(tokenizer.all_special_ids);
  let tail = 0;
  while (tail < length && special.has(read.input_ids[length - 1 - tail])) tail += 1;
  const kept = [...Array(length).keys()].filter((at) => limit === null || at < limit - tail || at >= length - tail);
  const tensor = (values) => new Tensor("int64", BigInt64Array.from(kept, (at) => BigInt(values[at])), [1, kept.length]);
  return Object.fromEntries(Object.entries(read).map(([name, values]) => [name, tensor(values)]));
}
