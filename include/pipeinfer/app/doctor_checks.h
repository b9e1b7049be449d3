// The checks of `doctor`. Each adds at least one finding and throws nothing, but for the links.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeinfer/app/cli.h"
#include "pipeinfer/app/doctor.h"
#include "pipeinfer/app/engine.h"

namespace pipeinfer {

/// Gives the value of an environment variable, or null.
using Environment = std::function<const char*(const char*)>;

// On every rank: its host.

/// What a host and the build say of GPUs.
struct GpuFacts {
  bool built = false;     ///< CUDA and NCCL are in the build
  CudaVersions cuda;      ///< of the build and of the driver
  std::string nccl;       ///< version
  std::string driver;     ///< version of the kernel's NVIDIA driver; empty: none is loaded
  std::string container;  ///< "Apptainer", "a container"; empty: this process is in none
  std::string cuda_visible_devices;
  int visible = 0;  ///< GPUs that this process can use
};
GpuFacts gpu_facts(const Environment& variable);

/// Whether the GPUs that are there can be used, as far as `device` (auto, cpu, cuda) asks for it.
void examine_driver(const GpuFacts& facts, const std::string& device, Findings& findings);

/// What a rank brings: compute capability and free memory.
void examine_device(const RankResources& rank, int device_index, int visible, Findings& findings);

/// Reads a part of the model's largest file from storage, at most some hundred MB and some seconds: another part on
/// each rank.
void examine_reading(const std::string& model_folder, int rank, int n_ranks, Findings& findings);

/// Whether the folder may be used, can be written (a small file is, and is removed), and has space left.
void examine_output(const RunConfig& run, int rank, Findings& findings);

// On every rank: the model as its host sees it.

void examine_config(const Command& command, Findings& findings);
std::optional<ModelConfig> examine_model(const RunConfig& run, Findings& findings);

/// Headers of all files, and every tensor against the configuration where there is one. Returns the headers' hash, 0
/// where they cannot be read.
uint64_t examine_weights(const RunConfig& run, const std::optional<ModelConfig>& model, Findings& findings);

// On rank 0: the job.

/// Tokenizer and prompts, together: prompts of token ids need no tokenizer.
void examine_texts(const RunConfig& run, const std::optional<ModelConfig>& model, Findings& findings);

/// Who started how many ranks where. `launch_error`: MPI sees fewer than were started.
void examine_launch(const Environment& variable, const std::vector<std::string>& hosts,
                    const std::string& launch_error, Findings& findings);

/// Whether the ranks' devices go together: all have a GPU of their own, or none has one. Returns whether they do.
bool examine_ranks(const std::vector<RankResources>& ranks, const RunConfig& run, Findings& findings);

/// Layers over ranks, and each stage's memory: what `describe` shows, for the ranks that are there.
void examine_plan(const ModelConfig& model, const RunConfig& run, const std::vector<RankResources>& ranks,
                  Findings& findings);

// On every rank, together.

/// A way that tensors take: hidden states from a stage to the next one, tokens from the last stage to the first.
struct Hop {
  int from = 0, to = 0;
  double latency_s = 0;    ///< of a small message, one way
  double bytes_per_s = 0;  ///< of large ones
};

/// Measures, one after another, the hops of a pipeline over all ranks, by the transport of a run. Every rank calls it;
/// rank 0 gets all hops, the tokens' last. Throws Error where a link fails.
std::vector<Hop> measure_hops(App& app, const RunConfig& run, Device device);

/// What rank 0 says of them. `nccl`: they go over NCCL, else over MPI.
void examine_hops(const std::vector<Hop>& hops, bool nccl, Findings& findings);

}  // namespace pipeinfer
