// Where the time of a decode step goes, kernel by kernel. The CUDA driver loads this library into a program:
//
//   CUDA_INJECTION64_PATH=.../libkernel_times.so pipeinfer bench --batch-size 1 --prompt-tokens 128 --new-tokens 64
//
// It records when kernels and copies run (CUPTI's activity API), and at the end prints the median step of the run's second
// half: its layers' kernels, each the mean over the layers, and what comes before and after them. Where kernels overlap,
// a time is from the end of what began earlier.
#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Record {
  uint64_t start, end;  // ns
  std::string name;
  double own_us = 0, gap_us = 0;  // since the end of all before it; and nothing ran before it
};
std::vector<Record> records;

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
  if (begins.size() < 3) return;
  const auto length = [&](size_t s) { return records[begins[s + 1]].start - records[begins[s]].start; };
  std::vector<size_t> steps;
  for (size_t s = begins.size() / 2; s + 1 < begins.size(); ++s) steps.push_back(s);
  std::nth_element(steps.begin(), steps.begin() + steps.size() / 2, steps.end(),
                   [&](size_t a, size_t b) { return length(a) < length(b); });
  const size_t step = steps[steps.size() / 2], end = begins[step + 1];
  std::vector<size_t> attention;  // one a layer
  for (size_t i = begins[step]; i < end; ++i) {
    if (records[i].name == "decode_kernel") attention.push_back(i);
  }
  std::printf("a step of %.1f us (while it is traced), %zu layers\n", length(step) / 1e3, attention.size());
  std::printf("%-8s %-44s %8s %8s\n", "", "kernel", "us", "gap us");
  if (attention.size() < 2) return;
  // From one layer's attention to the next one's: what is left are the first layer's head and the last one's tail.
  const size_t period = attention[1] - attention[0], layers = attention.size() - 1;
  for (size_t j = 0; j < period; ++j) {
    double own = 0, gap = 0;
    for (size_t l = 0; l < layers; ++l) {
      own += records[attention[l] + j].own_us;
      gap += records[attention[l] + j].gap_us;
    }
    print("layer", records[attention[0] + j].name, own / layers, gap / layers);
  }
  for (size_t i = begins[step]; i < end; ++i) {
    if (i == attention.front()) i = attention.back();
    print(i < attention.front() ? "before" : "after", records[i].name, records[i].own_us, records[i].gap_us);
  }
}

}  // namespace

extern "C" int InitializeInjection() {
  check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "recording kernels");
  check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY), "recording copies");
  std::atexit(report);
  return 1;
}
