#include "pipeinfer/trace/metrics_writer.h"

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "pipeinfer/base/clock.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"
#include "pipeinfer/trace/percentiles.h"

namespace pipeinfer {

MetricsWriter::MetricsWriter(const std::string& path, const StepRecorder& recorder, Device device,
                             double every_s)
    : path_(path),
      recorder_(recorder),
      device_(device),
      every_s_(every_s),
      begun_s_(now_s()),
      last_s_(begun_s_),
      out_(path, std::ios::app) {
  if (!out_) usage_error(cat("cannot open ", path, " for appending: ", std::strerror(errno)));
}

void MetricsWriter::tick(std::span<const Figure> figures) {
  const double now = now_s();
  if (now - last_s_ < every_s_) return;
  write("sample", now, last_s_, last_, figures);
}

void MetricsWriter::finish(std::span<const Figure> figures) {
  std::vector<double> step_ms;
  for (const StepTimes& step : recorder_.all_steps()) {
    step_ms.push_back((step.compute_end_s - step.compute_begin_s) * 1e3);
  }
  const Percentiles of_steps = percentiles(std::move(step_ms));
  std::vector<Figure> all(figures.begin(), figures.end());
  all.push_back({"step_ms_p50", of_steps.p50});
  all.push_back({"step_ms_p90", of_steps.p90});
  all.push_back({"step_ms_p99", of_steps.p99});
  write("summary", now_s(), begun_s_, {}, all);
}

void MetricsWriter::write(const char* kind, double now, double since, const StepTotals& before,
                          std::span<const Figure> figures) {
  const StepTotals totals = recorder_.totals();
  const DeviceUse use = device_use(device_);
  const double passed_s = now - since;
  const auto rate = [&](double amount) { return passed_s > 0 ? amount / passed_s : 0; };
  nlohmann::ordered_json line = {
      {"kind", kind},
      {"at_s", now - begun_s_},
      {"steps", totals.steps},
      {"tokens", totals.tokens},
      {"decode_tokens", totals.decode_tokens},
      {"tokens_per_s", rate(static_cast<double>(totals.tokens - before.tokens))},
      {"compute_percent", 100 * rate(totals.compute_s - before.compute_s)},
      {"device_busy_percent", use.busy_percent},
      {"device_used_bytes", use.used_bytes},
  };
  for (const Figure& figure : figures) line[figure.name] = figure.value;
  errno = 0;
  out_ << line.dump() << std::endl;
  if (!out_) runtime_failure(cat("cannot write ", path_, ": ", std::strerror(errno)));
  last_s_ = now;
  last_ = totals;
}

}  // namespace pipeinfer
