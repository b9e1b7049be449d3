#include "pipeinfer/tokenizer/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace pipeinfer {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    Pattern pattern{stop, std::vector<size_t>(stop.size(), 0)};
    for (size_t i = 1; i < stop.size(); ++i) {
      advance(pattern, stop[i]);
      pattern.failure[i] = pattern.matched;
    }
    pattern.matched = 0;
    patterns_.push_back(std::move(pattern));
  }
}

void StopMatcher::advance(Pattern& pattern, char byte) {
  while (pattern.matched > 0 && pattern.text[pattern.matched] != byte)
    pattern.matched = pattern.failure[pattern.matched - 1];
  if (pattern.text[pattern.matched] == byte) ++pattern.matched;
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  for (size_t i = held_.size() - text.size(); i < held_.size(); ++i) {
    size_t complete = 0;
    for (Pattern& pattern : patterns_) {
      advance(pattern, held_[i]);
      if (pattern.matched == pattern.text.size()) complete = std::max(complete, pattern.matched);
    }
    if (complete == 0) continue;
    stopped_ = true;
    return std::exchange(held_, "").substr(0, i + 1 - complete);
  }
  size_t keep = 0;  // the longest beginning of a stop string that the text ends with
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  std::string safe = held_.substr(0, held_.size() - keep);
  held_.erase(0, safe.size());
  return safe;
}

std::string StopMatcher::flush() { return std::exchange(held_, ""); }

}  // namespace pipeinfer
