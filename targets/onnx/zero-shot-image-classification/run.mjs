// How well each of some texts fits a picture, by the model in this folder, in Node, by transformers.js. Prints a line of
// JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs picture.png "a cat" "a dog"

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { RawImage, env, pipeline } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const [file, ...given] = process.argv.slice(2);
const texts = given.length ? given : ["a photo of a person", "a photo of an animal", "a photo of a thing"];
// Without a file a gradient is looked at.
const gradient = () => new RawImage(Uint8ClampedArray.from({ length: 256 * 256 * 3 }, (_, at) => Math.floor(at / 768)), 256, 256, 3);
const picture = file ? (await RawImage.read(file)).rgb() : gradient();
const classify = await pipeline("zero-shot-image-classification", folder);
// The texts as they are: by default each would be put into "This is a photo of {}".
const found = await classify(picture, texts, { hypothesis_template: "{}" });
console.log(JSON.stringify(Object.fromEntries(found.map(({ label, score }) => [label, score]))));
