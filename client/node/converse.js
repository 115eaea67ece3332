// A conversation with Triton over gRPC: node client/node/converse.js IN.wav OUT.wav [HOST:PORT]
//
// IN.wav is 16-bit mono 16 kHz; OUT.wav becomes 16-bit mono 24 kHz. Before the first use: npm install in this folder.

import { readFileSync, writeFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const TICK_SAMPLES = 5120; // 320 ms at 16 kHz
const TICK_BYTES = 2 * TICK_SAMPLES;
const WAV_HEADER_BYTES = 44;
const OUTPUT_RATE = 24000;
const OPTIONS = {}; // options of the conversation, for example { voice: { string_param: "ethan" } }

const [input, output, address = "127.0.0.1:8001"] = process.argv.slice(2);
if (!output) fail("usage: node client/node/converse.js IN.wav OUT.wav [HOST:PORT]");
const definition = protoLoader.loadSync(new URL("kserve.proto", import.meta.url).pathname, { keepCase: true });
const { inference } = grpc.loadPackageDefinition(definition);
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure(), {
  "grpc.enable_http_proxy": 0, // a proxy does not reach a server on this machine or in its network
});

const file = readInput();
const header = chunk("fmt ");
if (header.length < 16) fail(`${input}: expected a WAV, got a format of ${header.length} bytes`);
const isExtensible = header.readUInt16LE(0) === 0xfffe && header.length >= 26;
const kind = header.readUInt16LE(isExtensible ? 24 : 0);
const format = [header.readUInt32LE(4), header.readUInt16LE(2), header.readUInt16LE(14), kind];
if (format.join() !== "16000,1,16,1")
  fail(`${input}: expected 16000 Hz, 1 channel, 16 bits, format 1 (PCM), got ${format.join(", ")}`);
const sound = chunk("data");
if (sound.length < 2) fail(`${input}: it has no samples`);
const ticks = Math.ceil(sound.length / TICK_BYTES);
const conversation = `node-${process.pid}-${Date.now()}`;
const received = [];
let text = "";

const stream = client.ModelStreamInfer();
stream.on("data", ({ error_message, infer_response }) => {
  if (error_message) fail(error_message);
  const tensors = Object.fromEntries(
    infer_response.outputs.map(({ name }, i) => [name, infer_response.raw_output_contents[i]]),
  );
  received.push(tensors.AUDIO_OUT);
  text += tensors.TEXT.subarray(4).toString(); // a string tensor is a length of 4 bytes, then UTF-8
});
stream.on("error", ({ details }) => fail(details));
stream.on("end", () => {
  writeFileSync(output, wav(Buffer.concat(received)));
  console.log(text);
});

for (let tick = 0; tick < ticks; tick++) {
  const samples = Buffer.alloc(TICK_BYTES); // zeros pad the last tick with silence
  sound.copy(samples, 0, tick * TICK_BYTES);
  stream.write({
    model_name: "duplex",
    inputs: [{ name: "AUDIO_IN", datatype: "INT16", shape: [1, TICK_SAMPLES] }],
    raw_input_contents: [samples],
    parameters: {
      sequence_id: { string_param: conversation },
      sequence_start: { bool_param: tick === 0 },
      sequence_end: { bool_param: tick === ticks - 1 },
      ...(tick === 0 ? OPTIONS : {}),
    },
  });
}
stream.end();

function readInput() {
  try {
    const content = readFileSync(input);
    const isWav = /^(RIFF|RF64)$/.test(content.toString("latin1", 0, 4)) && content.toString("latin1", 8, 12) === "WAVE";
    if (!isWav) fail(`${input}: expected a WAV, got another format or an empty file`);
    return content;
  } catch (error) {
    fail(`${input}: ${error.message}`);
  }
}

// Returns a chunk of the WAV; other chunks may be before and after it. Programs that write to a pipe leave 0 or the
// largest number as the size of the samples, which then reach to the end of the file.
function chunk(name) {
  for (let at = 12; at + 8 <= file.length; ) {
    const size = file.readUInt32LE(at + 4);
    if (file.toString("latin1", at, at + 4) === name) {
      const isStreamed = name === "data" && size === 0 && file.toString("latin1", at + 8, at + 12) !== "LIST";
      const bytes = Math.min(isStreamed ? file.length : size, file.length - at - 8);
      return file.subarray(at + 8, at + 8 + (name === "data" ? bytes - (bytes % 2) : bytes));
    }
    at += 8 + size + (size % 2);
  }
  fail(`${input}: expected a WAV, got a file without a chunk '${name}'`);
}

function wav(pcm) {
  const header = Buffer.alloc(WAV_HEADER_BYTES);
  header.write("RIFF", 0);
  header.writeUInt32LE(WAV_HEADER_BYTES - 8 + pcm.length, 4);
  header.write("WAVEfmt ", 8);
  header.writeUInt32LE(16, 16); // bytes of the format
  header.writeUInt16LE(1, 20); // PCM
  header.writeUInt16LE(1, 22); // channel
  header.writeUInt32LE(OUTPUT_RATE, 24);
  header.writeUInt32LE(OUTPUT_RATE * 2, 28); // bytes a second
  header.writeUInt16LE(2, 32); // bytes a sample
  header.writeUInt16LE(16, 34); // bits a sample
  header.write("data", 36);
  header.writeUInt32LE(pcm.length, 40);
  return Buffer.concat([header, pcm]);
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
