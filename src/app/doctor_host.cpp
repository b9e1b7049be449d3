#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "pipeinfer/app/doctor_checks.h"
#include "pipeinfer/base/clock.h"
#include "pipeinfer/comm/nccl.h"
#include "pipeinfer/io/output_dir.h"

namespace pipeinfer {

namespace {

namespace fs = std::filesystem;

constexpr int kLeastCompute = 75;          // compute capability x 10, of the kernels
constexpr double kLeastFreeGpu = 0.8;      // of a GPU's memory: less, and someone else is there
constexpr double kSlowLoadS = 300;         // a load that is worth a warning
constexpr size_t kReadBytes = 256 << 20;   // most that a rank reads,
constexpr double kReadS = 3;               // and how long
constexpr size_t kReadChunk = 16 << 20;    // one pread
constexpr double kLeastDisk = 256 << 20;   // a run's outputs are small
constexpr size_t kProbeBytes = 256 << 10;  // written to see whether that works

// "580.65.06", of a line such as "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul ...".
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line, word;
  std::getline(file, line);
  std::istringstream words(line);
  while (words >> word)
    if (word.find_first_not_of("0123456789.") == std::string::npos) return word;
  return line;
}

std::string container_name(const Environment& variable) {
  if (variable("APPTAINER_CONTAINER") || variable("SINGULARITY_CONTAINER")) return "Apptainer";
  if (fs::exists("/.dockerenv") || fs::exists("/run/.containerenv") || variable("container"))
    return "a container";
  return "";
}

std::string cuda_text(int version) { return cat(version / 1000, ".", version % 1000 / 10); }

std::string join(const std::string& folder, const std::string& name) {
  return (fs::path(folder) / name).string();
}

// Writes, and takes away again.
void probe(const std::string& folder, int rank) {
  const std::string path = join(folder, cat(".pipeinfer-doctor-", rank, "-", getpid()));
  const auto refuse = [&](const char* doing) {
    const std::string why = std::strerror(errno);
    unlink(path.c_str());
    usage_error(cat("cannot ", doing, " a file in ", folder, ": ", why));
  };
  const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0) refuse("create");
  const std::string bytes(kProbeBytes, 'x');
  errno = ENOSPC;  // what a short write means
  const bool written = write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  const bool kept = fsync(fd) == 0;
  if (close(fd) != 0 || !written || !kept) refuse("write");
  unlink(path.c_str());
}

}  // namespace

GpuFacts gpu_facts(const Environment& variable) {
  GpuFacts facts;
  facts.built = nccl_built();
  facts.cuda = cuda_versions();
  facts.nccl = nccl_version();
  facts.driver = driver_version();
  facts.container = container_name(variable);
  if (const char* visible = variable("CUDA_VISIBLE_DEVICES")) facts.cuda_visible_devices = visible;
  facts.visible = cuda_device_count();
  return facts;
}

void examine_driver(const GpuFacts& facts, const std::string& device, Findings& findings) {
  const char* const check = "driver";
  const std::string build =
      facts.built ? cat("this build has CUDA ", cuda_text(facts.cuda.runtime), " and NCCL ", facts.nccl)
                  : "this build has no CUDA";
  const std::string driver =
      facts.driver.empty() ? "no NVIDIA driver is loaded" : cat("the NVIDIA driver is ", facts.driver);
  const std::string where = facts.container.empty() ? "" : cat(" (in ", facts.container, ")");
  const std::string text = cat(build, ", ", driver, where);
  if (facts.visible > 0)
    return findings.ok(check, cat(text, ", it serves CUDA ", cuda_text(facts.cuda.driver), ", ",
                                  counted(facts.visible, "GPU"), " can be seen"));
  if (device == "cpu" || (device == "auto" && facts.driver.empty())) return findings.ok(check, text);

  std::string what = cat(text, ", no GPU can be seen"), advice;
  if (facts.driver.empty()) {
    advice = "run on a node with GPUs, or give --device cpu";
  } else if (!facts.built) {
    advice = "build with cmake --preset gpu to use the GPUs, or give --device cpu";
  } else if (!facts.container.empty() && facts.cuda.driver == 0) {
    advice = facts.container == "Apptainer"
                 ? "start the container with --nv"
                 : "start the container with its GPUs (apptainer: --nv; docker: --gpus all)";
  } else if (facts.cuda.driver > 0 && facts.cuda.driver / 1000 < facts.cuda.runtime / 1000) {
    what += cat(", the driver serves only CUDA ", cuda_text(facts.cuda.driver));
    advice = "update the driver, or build with a CUDA that it serves";
  } else {
    what += cat(" (CUDA_VISIBLE_DEVICES=", facts.cuda_visible_devices, ")");
    advice = "ask for GPUs (Slurm: --gpus-per-task=1), and do not hide them by CUDA_VISIBLE_DEVICES";
  }
  device == "cuda" ? findings.fail(check, what, advice) : findings.warn(check, what, advice);
}

void examine_device(const RankResources& rank, int device_index, int visible, Findings& findings) {
  const char* const check = "device";
  const DeviceInfo& info = rank.device;
  const std::string memory = cat(bytes_text(info.free_bytes), " of ", bytes_text(info.total_bytes), " free");
  if (rank.kind == DeviceKind::cpu)
    return findings.ok(check,
                       cat("CPU, ", info.name, ", ", counted(rank.n_cores, "core"), " to run on, ", memory));
  const int compute = 10 * info.compute_major + info.compute_minor;
  const std::string text =
      cat("GPU ", device_index, " of ", visible, ", ", info.name, " at ", info.pci_bus_id,
          ", compute capability ", info.compute_major, ".", info.compute_minor, ", ", memory);
  if (compute < kLeastCompute)
    findings.fail(check, text, "7.5 or more is needed: use another GPU, or give --device cpu");
  else if (static_cast<double>(info.free_bytes) < kLeastFreeGpu * static_cast<double>(info.total_bytes))
    findings.warn(check, text, "see with nvidia-smi who uses the rest");
  else
    findings.ok(check, text);
}

void examine_reading(const std::string& model_folder, int rank, int n_ranks, Findings& findings) {
  const char* const check = "reading";
  if (model_folder.empty()) return findings.not_given(check, "--model");
  uint64_t all = 0, most = 0;
  std::string path;
  std::error_code ignored;  // a folder that cannot be listed is what the weights' check says
  for (const auto& entry : fs::directory_iterator(model_folder, ignored)) {
    const auto size = entry.path().extension() == ".safetensors" ? entry.file_size(ignored) : 0;
    if (ignored || size == 0) continue;
    all += size;
    if (size > most) most = size, path = entry.path().string();
  }
  if (path.empty())
    return findings.warn(check, cat("not measured: ", model_folder, " has no *.safetensors to read"), "");
  findings.attempt(check, "see that this host can read the model folder", [&] {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) usage_error(cat("cannot open ", path, ": ", std::strerror(errno)));
    const int fd = fileno(file.get());
    const uint64_t begin = most / n_ranks * rank;
    const uint64_t end = std::min(most, begin + std::min<uint64_t>(kReadBytes, most / n_ranks + 1));
    posix_fadvise(fd, static_cast<off_t>(begin), static_cast<off_t>(end - begin), POSIX_FADV_DONTNEED);
    std::vector<char> buffer(kReadChunk);
    uint64_t at = begin;
    const double start_s = now_s();
    while (at < end && now_s() - start_s < kReadS) {
      const ssize_t n =
          pread(fd, buffer.data(), std::min<uint64_t>(buffer.size(), end - at), static_cast<off_t>(at));
      if (n <= 0)
        usage_error(
            cat("cannot read ", path, " at byte ", at, ": ", n < 0 ? std::strerror(errno) : "it ends"));
      at += n;
    }
    const double rate = static_cast<double>(at - begin) / std::max(now_s() - start_s, 1e-6);
    const double load_s = static_cast<double>(all) / n_ranks / rate;
    char text[160];
    std::snprintf(text, sizeof text, " at %.2f GB/s: %s load in about %.1f s", rate / 1e9,
                  cat(bytes_text(static_cast<double>(all)), " over ", counted(n_ranks, "rank")).c_str(),
                  load_s);
    const std::string what = cat("read ", bytes_text(static_cast<double>(at - begin)), " of ", path, text);
    load_s > kSlowLoadS
        ? findings.warn(check, what, "copy the model to faster storage, node-local if there is some")
        : findings.ok(check, what);
  });
}

void examine_output(const RunConfig& run, int rank, Findings& findings) {
  const char* const check = "output";
  if (run.output_dir.empty()) return findings.not_given(check, "--output-dir");
  findings.attempt(check, "give an --output-dir that every rank can write, with space left", [&] {
    check_output_dir(run.output_dir, run.resume      ? OutputMode::resume
                                     : run.overwrite ? OutputMode::overwrite
                                                     : OutputMode::fresh);
    fs::path existing = fs::absolute(run.output_dir);
    while (!fs::exists(existing)) existing = existing.parent_path();
    probe(existing.string(), rank);
    struct statvfs disk {};
    if (statvfs(existing.c_str(), &disk) != 0)
      usage_error(cat("cannot ask for the space left in ", existing.string(), ": ", std::strerror(errno)));
    const double free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    const std::string text = cat(run.output_dir, " can be written, ", bytes_text(free), " left");
    free < kLeastDisk ? findings.warn(check, text, "make space before a long run: a full disk ends it")
                      : findings.ok(check, text);
  });
}

}  // namespace pipeinfer
