// Finds stop strings in text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pipeinfer {

/// The stop string that ends first rules (of those that end together the longest), however the text is cut
/// into pieces.
class StopMatcher {
 public:
  explicit StopMatcher(const std::vector<std::string>& stops);

  /// Adds text; returns what may be shown now: all but a possible beginning of a stop string, and once a stop
  /// string is complete what is before it. After that, nothing more.
  std::string push(std::string_view text);

  bool stopped() const { return stopped_; }

  /// The end of the text: what was held back.
  std::string flush();

 private:
  /// One stop string with the Knuth-Morris-Pratt (1977) failure function.
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;  ///< [size]: longest proper border of the first i + 1 bytes
    size_t matched = 0;           ///< bytes of it that the text so far ends with
  };
  static void advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace pipeinfer
