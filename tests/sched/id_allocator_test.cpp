#include "pipeinfer/sched/id_allocator.h"

#include <gtest/gtest.h>

#include <string>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

template <typename Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(IdAllocator, GivesIdsInAKnownOrder) {
  IdAllocator ids(4);
  EXPECT_EQ(ids.available(), 4);
  EXPECT_EQ(ids.take(), 0);
  EXPECT_EQ(ids.take(), 1);
  EXPECT_EQ(ids.take(), 2);
  ids.release(0);
  ids.release(2);
  EXPECT_EQ(ids.available(), 3);
  EXPECT_EQ(ids.take(), 2);
  EXPECT_EQ(ids.take(), 0);
  EXPECT_EQ(ids.take(), 3);
  EXPECT_EQ(ids.available(), 0);
}

TEST(IdAllocator, RefusesWhatCannotBe) {
  IdAllocator ids(1);
  EXPECT_NE(message_of([&] { ids.release(0); }).find("id 0 is free already"), std::string::npos);
  EXPECT_NE(message_of([&] { ids.release(1); }).find("id 1 of 1"), std::string::npos);
  EXPECT_NE(message_of([&] { ids.release(-1); }).find("id -1 of 1"), std::string::npos);
  ids.take();
  EXPECT_NE(message_of([&] { ids.take(); }).find("all 1 ids are taken"), std::string::npos);
  ids.release(0);
  EXPECT_NE(message_of([&] { ids.release(0); }).find("id 0 is free already"), std::string::npos);
}

}  // namespace
}  // namespace pipeinfer
