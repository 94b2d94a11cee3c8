// What the model in this folder says of a text, in Node, by transformers.js. Prints it as a line of JSON.
//
//     npm install @huggingface/transformers
//     node run.mjs TEXT            (of a model that answers questions: QUESTION TEXT)

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { env, pipeline } from "@huggingface/transformers";

const folder = dirname(fileURLToPath(import.meta.url));
// Nothing is fetched: the folder's path stands for the model's name.
env.allowRemoteModels = false;
env.localModelPath = "";

const { task } = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf-8"));
const model = await pipeline(task, folder);
// Which of two texts a token is of: of tokenizers that it does not know by name transformers.js leaves that out.
model.tokenizer.return_token_type_ids = true;
const words = process.argv.slice(2).map((word) => word.replaceAll("[MASK]", model.tokenizer.mask_token ?? "[MASK]"));
console.log(JSON.stringify(await model(...words)));
