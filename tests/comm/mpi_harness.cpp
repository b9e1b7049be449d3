// The conformance tests' ranks as processes: each runs all the tests, in the same order, on its own rank.
#include <gtest/gtest.h>

#include <cstdio>

#include "harness.h"

namespace pipeinfer {
namespace {
std::unique_ptr<Job> the_job;
}

void on_every_rank(const std::function<void(Job&)>& body) { body(*the_job); }

}  // namespace pipeinfer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  pipeinfer::the_job = pipeinfer::start_job(5);
  const int result = RUN_ALL_TESTS();
  pipeinfer::the_job->finalize(20);
  pipeinfer::the_job.reset();
  return result;
}
