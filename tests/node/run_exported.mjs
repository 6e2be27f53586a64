// Runs exported folders with transformers.js, as a browser would, and prints what came out as one JSON line each.
//
//   node run_exported.mjs jobs.json
//
// jobs.json: {"root": folder of model folders, "jobs": [{"model", "task", "dtype", "pixels", "shape", "output", "image"}]}
// `pixels` is a file of float32 numbers of that shape; the first output of the model goes to the file `output`.
import { readFileSync, writeFileSync } from "node:fs";
import {
  AutoModel,
  AutoModelForDepthEstimation,
  AutoModelForNormalEstimation,
  AutoModelForSemanticSegmentation,
  AutoProcessor,
  RawImage,
  Tensor,
  env,
  pipeline,
} from "@huggingface/transformers";

// transformers.js has no pose class for Sapiens; AutoModel runs the graph and hands out its outputs by name.
const TASKS = {
  pose: { cls: AutoModel, output: "heatmaps" },
  segmentation: { cls: AutoModelForSemanticSegmentation, output: "logits", pipeline: "image-segmentation" },
  depth: { cls: AutoModelForDepthEstimation, output: "predicted_depth", pipeline: "depth-estimation" },
  normal: { cls: AutoModelForNormalEstimation, output: "predicted_normal" },
  encoder: { cls: AutoModel, output: "last_hidden_state" },
};

const { root, jobs } = JSON.parse(readFileSync(process.argv[2], "utf8"));
env.allowRemoteModels = false;
env.localModelPath = root;

for (const job of jobs) {
  const task = TASKS[job.task];
  const options = { dtype: job.dtype };
  const model = await task.cls.from_pretrained(job.model, options);
  const bytes = readFileSync(job.pixels);
  const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const outputs = await model({ pixel_values: new Tensor("float32", pixels, job.shape) });
  const first = outputs[task.output];
  writeFileSync(job.output, Buffer.from(Float32Array.from(first.data).buffer));
  const result = { model: job.model, class: model.constructor.name, outputs: Object.keys(outputs), dims: first.dims };

  if (job.image) {
    const processor = await AutoProcessor.from_pretrained(job.model);
    const image = await RawImage.read(job.image);
    const inputs = await processor(image);
    result.processor = { class: processor.constructor.name, dims: inputs.pixel_values.dims };
    if (task.pipeline) {
      const run = await pipeline(task.pipeline, job.model, options);
      const answer = await run(job.image);
      result.pipeline = Array.isArray(answer)
        ? answer.map((part) => ({ label: part.label, size: [part.mask.width, part.mask.height] }))
        : { dims: answer.predicted_depth.dims, size: [answer.depth.width, answer.depth.height] };
    }
  }
  console.log(JSON.stringify(result));
  await model.dispose();
}
