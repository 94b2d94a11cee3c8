// A text's labels by the model in this folder, in Node, by transformers.js. Prints them as a line of JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs "A sentence."            (a model of pairs, for entailment or reranking: both texts)

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { AutoModelForSequenceClassification, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const [text = "A sentence.", pair = null] = process.argv.slice(2);
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForSequenceClassification.from_pretrained(folder);
const asked = { text_pair: pair, return_tensor: false, return_token_type_ids: true };
const read = await tokenizer(text, asked);
const longest = tokenizer.model_max_length ?? model.config.max_position_embeddings ?? Infinity;
const [logits] = (await model(fed(read, longest))).logits.tolist();

// Each label's probability, the likeliest first; of a model that answers numbers, the numbers.
const { problem_type, id2label = {} } = model.config;
const regression = logits.length === 1 || problem_type === "regression";
let answers = logits;
if (problem_type === "multi_label_classification") {
  answers = logits.map((logit) => 1 / (1 + Math.exp(-logit))); // each label is a yes or no of its own
} else if (!regression) {
  const powers = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  answers = powers.map((power) => power / powers.reduce((total, one) => total + one, 0));
}
const order = answers.map((_, at) => at);
if (answers !== logits) order.sort((a, b) => answers[b] - answers[a]);
console.log(JSON.stringify(Object.fromEntries(order.map((at) => [id2label[at] ?? `LABEL_${at}`, answers[at]]))));

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
