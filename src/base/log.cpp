#include "pipeinfer/base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <mutex>
#include <utility>
#include <vector>

#include "pipeinfer/base/error.h"

namespace pipeinfer {

struct Log::Impl {
  int rank;
  std::mutex mutex;
  std::shared_ptr<spdlog::logger> logger;               // null until open()
  std::vector<std::pair<LogLevel, std::string>> early;  // lines from before open()

  void put(LogLevel level, const std::string& message) {
    static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                            spdlog::level::warn, spdlog::level::err};
    logger->log(kLevels[static_cast<int>(level)], "{}", message);
  }
};

Log::Log(int rank) : impl_(std::make_unique<Impl>()) { impl_->rank = rank; }
Log::~Log() = default;

void Log::open(const std::string& path) {
  std::lock_guard lock(impl_->mutex);
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    impl_->logger = std::make_shared<spdlog::logger>(cat("rank ", impl_->rank), sink);
  } catch (const spdlog::spdlog_ex& e) {
    usage_error(cat("cannot write the log ", path, ": ", e.what()));
  }
  impl_->logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %n %l: %v");
  impl_->logger->set_level(spdlog::level::debug);
  impl_->logger->flush_on(spdlog::level::info);
  for (const auto& [level, message] : impl_->early) impl_->put(level, message);
  impl_->early.clear();
}

void Log::write(LogLevel level, const std::string& message) {
  std::lock_guard lock(impl_->mutex);
  if (level == LogLevel::warn) std::fprintf(stderr, "pipeinfer: warning: %s\n", message.c_str());
  if (impl_->logger)
    impl_->put(level, message);
  else
    impl_->early.emplace_back(level, message);
}

void Log::fatal(const std::string& message) {
  std::fprintf(stderr, "pipeinfer: %s\n", message.c_str());
  std::fflush(stderr);
  write(LogLevel::error, message);
  flush();
}

void Log::flush() {
  std::lock_guard lock(impl_->mutex);
  if (impl_->logger) impl_->logger->flush();
}

}  // namespace pipeinfer
