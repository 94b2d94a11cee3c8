// A picture's vector by the model in this folder, in Node, by transformers.js. Prints it as a line of JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs picture.png

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { AutoImageProcessor, AutoModel, RawImage, env } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const picture = (await RawImage.read(process.argv[2])).rgb();
const processor = await AutoImageProcessor.from_pretrained(folder);
const model = await AutoModel.from_pretrained(folder);
const { pixel_values } = await processor(picture);
const { last_hidden_state } = await model({ pixel_values });
const [states] = last_hidden_state.tolist();

// The state of the whole picture beside a square of patches, or the mean of all; convolutional models have [H, height, width].
const mean = (numbers) => numbers.reduce((total, one) => total + one, 0) / numbers.length;
const whole = [1, 2].some((more) => Number.isInteger(Math.sqrt(states.length - more)) && states.length > more);
let vector = states[0];
if (last_hidden_state.dims.length === 4) vector = states.map((channel) => mean(channel.flat()));
else if (!whole) vector = vector.map((_, at) => mean(states.map((state) => state[at])));
console.log(JSON.stringify(vector));
