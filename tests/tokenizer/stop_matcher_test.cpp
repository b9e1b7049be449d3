#include "pipeinfer/tokenizer/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>

namespace pipeinfer {
namespace {

/// Where the text ends by the definition: before the stop string that ends first, of those the longest.
std::optional<size_t> cut_of(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) return end - longest;
  }
  return std::nullopt;
}

TEST(StopMatcher, HoldsBackOnlyAPossibleBeginning) {
  StopMatcher matcher({"###", "\nUser:"});
  EXPECT_EQ(matcher.push("Hello #"), "Hello ");
  EXPECT_EQ(matcher.push("1 ##"), "#1 ");
  EXPECT_EQ(matcher.push("4\nUs"), "##4");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push("er: hi"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, FlushReturnsAnUnfinishedBeginning) {
  StopMatcher matcher({"abc"});
  EXPECT_EQ(matcher.push("xab"), "x");
  EXPECT_EQ(matcher.flush(), "ab");
  StopMatcher nothing({});
  EXPECT_EQ(nothing.push("anything"), "anything");
  EXPECT_EQ(nothing.flush(), "");
}

TEST(StopMatcher, TheStopThatEndsFirstRules) {
  StopMatcher matcher({"abcd", "bc", "c"});
  EXPECT_EQ(matcher.push("abcd"), "a") << "of those that end together the longest";
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcher, AnyCutOfTheTextGivesTheSame) {
  std::mt19937 rng(3);
  const auto random_text = [&](size_t size) {
    std::string text(size, 'a');
    for (char& c : text) c = static_cast<char>('a' + rng() % 2);
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + rng() % 3; ++i) stops.push_back(random_text(1 + rng() % 6));
    const std::string text = random_text(rng() % 24);
    const std::optional<size_t> cut = cut_of(text, stops);
    StopMatcher matcher(stops);
    std::string shown;
    for (size_t i = 0; i < text.size() && !matcher.stopped();) {
      const size_t size = 1 + rng() % 4;
      shown += matcher.push(text.substr(i, size));
      ASSERT_TRUE(text.substr(0, cut.value_or(text.size())).starts_with(shown)) << text;
      i += size;
    }
    shown += matcher.flush();
    ASSERT_EQ(matcher.stopped(), cut.has_value()) << text;
    ASSERT_EQ(shown, text.substr(0, cut.value_or(text.size()))) << text;
  }
}

}  // namespace
}  // namespace pipeinfer
