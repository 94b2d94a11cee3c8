// A text's vector from the model's hidden states, as the model's own modules make it: modules.json in this folder.
//
// What the modules do is sentence-transformers'. Without modules.json a vector is the mean of the states.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const sum = (states) => states[0].map((_, at) => states.reduce((total, state) => total + state[at], 0));
// In the order in which sentence-transformers joins them, where a model asks for several.
const modes = {
  cls_token: (states) => states[0],
  max_tokens: (states) => states[0].map((_, at) => Math.max(...states.map((state) => state[at]))),
  mean_tokens: (states) => sum(states).map((value) => value / states.length),
  mean_sqrt_len_tokens: (states) => sum(states).map((value) => value / Math.sqrt(states.length)),
  weightedmean_tokens: (states) => {
    const weighted = sum(states.map((state, at) => state.map((value) => value * (at + 1))));
    return weighted.map((value) => value / ((states.length * (states.length + 1)) / 2));
  },
  lasttoken: (states) => states[states.length - 1],
};
const activations = {
  Identity: (value) => value,
  ReLU: (value) => Math.max(value, 0),
  Sigmoid: (value) => 1 / (1 + Math.exp(-value)),
  Tanh: Math.tanh,
};

export class Pooling {
  constructor(folder) {
    this.steps = read(join(folder, "modules.json"), [])
      .sort((a, b) => Number(a.idx) - Number(b.idx))
      .map((one) => [one.type.split(".").pop(), join(folder, one.path)]);
    const settings = read(join(folder, "sentence_bert_config.json"), {});
    const asked = read(join(folder, "config_sentence_transformers.json"), {});
    this.prompt = asked.prompts?.[asked.default_prompt_name ?? ""] ?? "";
    this.lower = Boolean(settings.do_lower_case);
    const longest = read(join(folder, "tokenizer_config.json"), {}).model_max_length;
    const room = read(join(folder, "config.json"), {}).max_position_embeddings;
    // Tokens that are read of a text; a tokenizer without a limit of its own says 10^30.
    const limits = [settings.max_seq_length, longest, longest ? null : room].filter((one) => one && one < 2 ** 20);
    this.limit = limits.length ? Math.min(...limits) : null;
  }

  // What the tokenizer gets of a text.
  text(text) {
    const whole = (this.prompt + text).trim();
    return this.lower ? whole.toLowerCase() : whole;
  }

  // What becomes of a text's hidden states, an array of numbers for each token.
  vector(states) {
    if (!this.steps.length) return modes.mean_tokens(states);
    let out = null;
    for (const [kind, path] of this.steps) {
      if (kind === "Pooling") {
        out = asked(read(join(path, "config.json"), {})).flatMap((name) => modes[name](states));
      } else if (kind === "Dense") {
        out = dense(path, out);
      } else if (kind === "Normalize") {
        const length = Math.max(Math.hypot(...out), 1e-12);
        out = out.map((value) => value / length);
      } else if (!["Transformer", "Dropout"].includes(kind)) {
        throw new Error(`modules.json has a ${kind}, which this program does not know`);
      }
    }
    return out;
  }
}

// The ways of pooling that a Pooling's config.json asks for, in either form that it is written in.
function asked(settings) {
  const said = settings.pooling_mode;
  const long = (name) => Object.keys(modes).find((one) => one.replace(/_tokens?$/, "") === name) ?? name;
  const names =
    said === undefined || said === null
      ? Object.keys(settings)
          .filter((name) => name.startsWith("pooling_mode_") && settings[name] === true)
          .map((name) => name.slice("pooling_mode_".length))
      : [said].flat().map(long);
  if (!names.length || names.some((name) => !(name in modes))) {
    throw new Error(`the model pools by ${names.join(", ") || "nothing"}, which this program does not know`);
  }
  return Object.keys(modes).filter((name) => names.includes(name));
}

function dense(folder, vector) {
  const weights = tensors(join(folder, "model.safetensors"));
  const weight = weights["linear.weight"] ?? weights.weight;
  const bias = weights["linear.bias"] ?? weights.bias;
  const name = (read(join(folder, "config.json"), {}).activation_function ?? "Tanh").split(".").pop();
  return Array.from({ length: weight.length / vector.length }, (_, row) => {
    const product = vector.reduce((total, value, at) => total + value * weight[row * vector.length + at], 0);
    return activations[name](product + (bias?.[row] ?? 0));
  });
}

// The float32 tensors of a safetensors file: eight bytes for the header's length, the header as JSON, the numbers.
function tensors(file) {
  const bytes = readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const { __metadata__, ...header } = JSON.parse(bytes.subarray(8, start).toString("utf8"));
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, data_offsets: [from, to] }]) => {
      if (dtype !== "F32") throw new Error(`${file} holds ${name} as ${dtype}, and this program reads F32`);
      return [name, new Float32Array(new Uint8Array(bytes.subarray(start + from, start + to)).buffer)];
    }),
  );
}

function read(file, missing) {
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : missing;
}
