#include "pipeinfer/config/world.h"

#include <set>
#include <tuple>

#include "test_folder.h"

namespace pipeinfer {
namespace {

TEST(World, RankAndCoordinatesAreInverse) {
  const int data = 2, pipeline = 3, tensor = 4, size = data * pipeline * tensor;
  std::set<std::tuple<int, int, int>> places;
  for (int rank = 0; rank < size; ++rank) {
    const World world(rank, size, pipeline, tensor, data);
    const Coordinates place = world.coordinates();
    EXPECT_EQ(world.rank_of(place), rank);
    EXPECT_EQ(world.size(), size);
    places.insert({place.replica, place.stage, place.shard});
  }
  EXPECT_EQ(places.size(), static_cast<size_t>(size));
  EXPECT_EQ(World(0, size, pipeline, tensor, data).coordinates(23), (Coordinates{1, 2, 3}));
}

TEST(World, NeighboursStayInTheReplicaAndShard) {
  const World middle(1, 3);
  EXPECT_EQ(middle.stages(), 3);
  EXPECT_EQ(middle.previous(), 0);
  EXPECT_EQ(middle.next(), 2);
  EXPECT_FALSE(middle.first_stage() || middle.last_stage());
  EXPECT_EQ(World(0, 3).previous(), -1);
  EXPECT_EQ(World(2, 3).next(), -1);

  const World shard(7, 12, 3, 2, 2);  // replica 1, stage 0, shard 1
  EXPECT_TRUE(shard.first_stage());
  EXPECT_EQ(shard.next(), 9);
  EXPECT_EQ(shard.rank_of_stage(2), 11);
  EXPECT_TRUE(World(0, 1).first_stage() && World(0, 1).last_stage());
}

TEST(World, RefusesWhatDoesNotFillTheJob) {
  EXPECT_EQ(refusal([] { World(0, 2, 4); }),
            "the job has 2 ranks, but data_parallel_size 1 x pipeline_parallel_size 4 x tensor_parallel_size "
            "1 needs 4");
  EXPECT_NE(refusal([] { World(0, 1, 0, 2); }).find("the job has 1 rank, but"), std::string::npos);
  EXPECT_NE(refusal([] { World(0, 5, 0, 2); }).find("the job has 5 ranks, but"), std::string::npos);
  EXPECT_EQ(refusal([] { World(3, 3); }), "rank 3 is not one of 3 ranks");
}

}  // namespace
}  // namespace pipeinfer
