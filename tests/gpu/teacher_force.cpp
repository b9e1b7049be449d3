// Dumps the logits of every position of given sequences, for compare_transformers.py:
//
//   teacher_force --model FOLDER --sequences FILE.jsonl --output LOGITS.bin
//                 [--device cuda|cpu] [--dtype auto|fp32|fp16|bf16] [--chunk 256] [--batch 1]
//
// A line of FILE has prompt_token_ids and token_ids; LOGITS.bin is raw fp32 [positions, vocab] of each line in turn.
// `--batch` sequences run at a time, `--chunk` tokens of each in a step: a chunk of 1 goes through the decode kernels.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/checkpoint/checkpoint.h"
#include "pipeinfer/model/llama_stage.h"

using namespace pipeinfer;

namespace {

struct Sequence {
  std::vector<int32_t> tokens;
  int32_t prompt_tokens = 0;
  int64_t first_row = 0;  // of the output
  int32_t done = 0;
};

std::vector<Sequence> read_sequences(const std::string& path) {
  std::ifstream file(path);
  if (!file) usage_error(cat(path, " cannot be read"));
  std::vector<Sequence> sequences;
  int64_t row = 0;
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    Sequence sequence;
    sequence.tokens = json.at("prompt_token_ids").get<std::vector<int32_t>>();
    sequence.prompt_tokens = sequence.tokens.size();
    for (int32_t token : json.at("token_ids")) sequence.tokens.push_back(token);
    sequence.first_row = row;
    row += sequence.tokens.size();
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

DType parse_dtype(const std::string& name, DType automatic) {
  for (DType dtype : {DType::fp32, DType::fp16, DType::bf16})
    if (name == dtype_name(dtype)) return dtype;
  if (name != "auto") usage_error(cat("--dtype is auto, fp32, fp16 or bf16, not ", name));
  return automatic;
}

// Opens each sequence in the slot of its index, with all the blocks it can need.
void open_slots(StepPlan& plan, const std::vector<Sequence*>& batch, const StageOptions& options) {
  for (size_t slot = 0; slot < batch.size(); ++slot) {
    plan.opened.push_back({static_cast<int32_t>(slot), batch[slot]->prompt_tokens, {}});
    BlockGrant grant{static_cast<int32_t>(slot), {}};
    for (int i = 0; i < options.max_blocks(); ++i) grant.blocks.push_back(slot * options.max_blocks() + i);
    plan.granted.push_back(grant);
  }
}

void run(std::map<std::string, std::string> given) {
  const auto option = [&](const std::string& name, const std::string& otherwise) {
    const auto found = given.find("--" + name);
    if (found == given.end() && otherwise.empty()) usage_error(cat("--", name, " is missing"));
    return found == given.end() ? otherwise : found->second;
  };
  const std::string folder = option("model", "");
  std::vector<Sequence> sequences = read_sequences(option("sequences", ""));
  const ModelConfig config = load_model_config(folder);
  const Device device{option("device", "cuda") == "cpu" ? DeviceKind::cpu : DeviceKind::cuda, 0};
  const int chunk = std::stoi(option("chunk", "256")), batch_size = std::stoi(option("batch", "1"));

  StageOptions options;
  options.last_layer = config.n_layers;
  options.dtype = parse_dtype(option("dtype", "auto"), device.is_cuda() ? config.dtype : DType::fp32);
  options.context = config.context();
  options.slots = batch_size;
  options.blocks = batch_size * options.max_blocks();
  options.max_tokens = batch_size * chunk;
  use_device(device);
  LlamaStage stage(config, options, Checkpoint(folder), device);
  Stream stream(device);
  DeviceBuffer sampled(device, options.max_tokens * sizeof(int32_t), "sampled tokens");
  PinnedBuffer host(device, sizeof(float) * kHeadRows * config.vocab_size, "logits");
  Event copied(device);

  std::ofstream out(option("output", ""), std::ios::binary);
  std::vector<int64_t> out_row;  // of each sample of the step
  stage.on_logits([&](const StepPlan&, int first, int n, const float* logits, Stream&) {
    const size_t row_bytes = sizeof(float) * config.vocab_size;
    copy_async(host.data(), logits, n * row_bytes, stream);
    copied.record(stream);
    if (!wait_until(copied, 60)) runtime_failure("the device has not answered for 60 s");
    for (int i = 0; i < n; ++i) {
      out.seekp(out_row[first + i] * row_bytes);
      out.write(host.as<char>() + i * row_bytes, row_bytes);
    }
  });

  uint64_t step = 0;
  for (size_t begin = 0; begin < sequences.size(); begin += batch_size) {
    std::vector<Sequence*> batch;
    for (size_t i = begin; i < std::min(begin + batch_size, sequences.size()); ++i)
      batch.push_back(&sequences[i]);
    for (bool opened = false;; opened = true) {
      StepPlan plan;
      plan.step = step++;
      if (!opened) open_slots(plan, batch, options);
      out_row.clear();
      for (size_t slot = 0; slot < batch.size(); ++slot) {
        Sequence& s = *batch[slot];
        const int32_t n = std::min<int32_t>(chunk, s.tokens.size() - s.done);
        if (n == 0) continue;
        plan.rows.push_back(
            {static_cast<int32_t>(slot), s.done, n, static_cast<int32_t>(plan.tokens.size()), n});
        plan.tokens.insert(plan.tokens.end(), s.tokens.begin() + s.done, s.tokens.begin() + s.done + n);
        for (int32_t i = 0; i < n; ++i) out_row.push_back(s.first_row + s.done + i);
        s.done += n;
      }
      if (plan.rows.empty()) break;
      plan.check({options.slots, options.blocks, options.block_size, options.context, config.vocab_size, 1,
                  options.max_tokens});
      stage.prepare(plan, stream);
      stage.run(plan, {.sampled = sampled.as<int32_t>()}, stream);
    }
  }
  if (!out.flush()) runtime_failure("the logits cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::map<std::string, std::string> given;
    for (int i = 1; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
    run(given);
  } catch (const Error& error) {
    std::cerr << "teacher_force: " << error.what() << "\n";
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::cerr << "teacher_force: " << error.what() << "\n";
    return 2;
  }
}
