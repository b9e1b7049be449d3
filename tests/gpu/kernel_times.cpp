// Where the time of a step goes, kernel by kernel. The CUDA driver loads this library into a program:
//
//   CUDA_INJECTION64_PATH=.../libkernel_times.so pipeinfer bench --batch-size 1 --prompt-tokens 128 --new-tokens 64
//
// It records when kernels and copies run (CUPTI's activity API), and at the end prints two steps of the run's second half:
// the median one that only has new prompts, summed by kernel, and the median one that decodes: its layers' kernels, each
// the mean over the layers, and what comes before and after them. Where kernels overlap, a time is from the end of what
// began earlier.
#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Record {
  uint64_t start, end;  // ns
  std::string name;
  double own_us = 0, gap_us = 0;  // since the end of all before it; and nothing ran before it
};
std::vector<Record> records;
const char* const kDecode = "decode_kernel";

void check(CUptiResult result, const char* what) {
  if (result == CUPTI_SUCCESS) return;
  const char* message = "?";
  cuptiGetResultString(result, &message);
  std::fprintf(stderr, "kernel_times: %s: %s\n", what, message);
  std::exit(1);
}

/// Without namespaces, template arguments and parameters.
std::string short_name(const char* mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> full(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  std::string name = full ? full.get() : mangled, kept;
  int depth = 0;
  for (char c : name) {
    if (c == '<') ++depth;
    if (depth == 0) kept += c;
    if (c == '>') --depth;
  }
  for (std::string anonymous = "(anonymous namespace)::"; kept.find(anonymous) != std::string::npos;)
    kept.erase(kept.find(anonymous), anonymous.size());
  kept = kept.substr(0, kept.find('('));
  kept = kept.substr(kept.rfind(' ') + 1);
  return kept.substr(kept.rfind(':') + 1);
}

void CUPTIAPI give_buffer(uint8_t** data, size_t* bytes, size_t* most_records) {
  *bytes = size_t{8} << 20;
  *data = static_cast<uint8_t*>(std::aligned_alloc(8, *bytes));
  *most_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* data, size_t, size_t valid) {
  for (CUpti_Activity* record = nullptr; cuptiActivityGetNextRecord(data, valid, &record) == CUPTI_SUCCESS;) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
      records.push_back({kernel->start, kernel->end, short_name(kernel->name)});
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const auto* copy = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
      records.push_back({copy->start, copy->end, "copy"});
    }
  }
  std::free(data);
}

void print(const char* where, const std::string& name, double own_us, double gap_us) {
  std::printf("%-8s %-44.44s %8.2f %8.2f\n", where, name.c_str(), own_us, gap_us);
}

/// Steps [begin, end) of `records`, the one of median length; none: {0, 0}.
std::pair<size_t, size_t> median_step(std::vector<std::pair<size_t, size_t>> steps) {
  if (steps.empty()) return {0, 0};
  const auto length = [](const auto& step) { return records[step.second].start - records[step.first].start; };
  const auto middle = steps.begin() + steps.size() / 2;
  std::nth_element(steps.begin(), middle, steps.end(),
                   [&](const auto& a, const auto& b) { return length(a) < length(b); });
  return *middle;
}

void print_title(const char* what, size_t begin, size_t end) {
  std::printf("a step of %s of %.1f us (while it is traced)\n%-8s %-44s %8s %8s\n", what,
              (records[end].start - records[begin].start) / 1e3, "", "kernel", "us", "gap us");
}

/// From one layer's attention to the next one's, the mean over the layers: what is left are the first layer's head and the
/// last one's tail.
void print_decode(size_t begin, size_t end) {
  std::vector<size_t> attention;  // one a layer
  for (size_t i = begin; i < end; ++i) {
    if (records[i].name == kDecode) attention.push_back(i);
  }
  print_title("decode", begin, end);
  if (attention.size() < 2) return;
  const size_t period = attention[1] - attention[0], layers = attention.size() - 1;
  for (size_t j = 0; j < period; ++j) {
    double own = 0, gap = 0;
    for (size_t l = 0; l < layers; ++l) {
      own += records[attention[l] + j].own_us;
      gap += records[attention[l] + j].gap_us;
    }
    print("layer", records[attention[0] + j].name, own / layers, gap / layers);
  }
  for (size_t i = begin; i < end; ++i) {
    if (i == attention.front()) i = attention.back();
    print(i < attention.front() ? "before" : "after", records[i].name, records[i].own_us, records[i].gap_us);
  }
}

/// The sums over all kernels of a name.
void print_prefill(size_t begin, size_t end) {
  std::map<std::string, std::pair<double, double>> sums;
  for (size_t i = begin; i < end; ++i) {
    auto& [own, gap] = sums[records[i].name];
    own += records[i].own_us;
    gap += records[i].gap_us;
  }
  print_title("prefill", begin, end);
  for (const auto& [name, sum] : sums) print("all", name, sum.first, sum.second);
}

void report() {
  check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  std::sort(records.begin(), records.end(),
            [](const Record& a, const Record& b) { return a.start < b.start; });
  std::vector<size_t> begins;  // of steps
  uint64_t busy = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    Record& r = records[i];
    if (r.name == "prepare_kernel") begins.push_back(i);
    if (busy > 0 && r.start > busy) r.gap_us = (r.start - busy) / 1e3;
    if (r.end > busy) r.own_us = (r.end - std::max(busy, r.start)) / 1e3;
    busy = std::max(busy, r.end);
  }
  std::vector<std::pair<size_t, size_t>> decode, prefill;
  for (size_t s = begins.size() / 2; s + 1 < begins.size(); ++s) {
    const bool decodes = std::any_of(records.begin() + begins[s], records.begin() + begins[s + 1],
                                     [](const Record& r) { return r.name == kDecode; });
    (decodes ? decode : prefill).emplace_back(begins[s], begins[s + 1]);
  }
  if (const auto [begin, end] = median_step(prefill); end > 0) print_prefill(begin, end);
  if (const auto [begin, end] = median_step(decode); end > 0) print_decode(begin, end);
}

}  // namespace

extern "C" int InitializeInjection() {
  check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "recording kernels");
  check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY), "recording copies");
  std::atexit(report);
  return 1;
}
