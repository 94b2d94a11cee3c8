// A picture's labels by the model in this folder, in Node, by transformers.js. Prints them as a line of JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs picture.png

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { AutoImageProcessor, AutoModelForImageClassification, RawImage, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const file = process.argv[2];
// Without a file a gradient is looked at.
const gradient = () => new RawImage(Uint8ClampedArray.from({ length: 256 * 256 * 3 }, (_, at) => Math.floor(at / 768)), 256, 256, 3);
const picture = file ? (await RawImage.read(file)).rgb() : gradient();
const processor = await AutoImageProcessor.from_pretrained(folder);
const model = await AutoModelForImageClassification.from_pretrained(folder);
const { pixel_values } = await processor(picture);
const [logits] = (await model({ pixel_values })).logits.tolist();

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
