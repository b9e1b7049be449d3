#include <cuda_runtime_api.h>

#include "../cuda_api.h"
#include "pipeinfer/device/cuda_check.h"

namespace pipeinfer::cuda {

void* graph_capture(void* stream, const std::function<void()>& enqueue) {
  const auto native = static_cast<cudaStream_t>(stream);
  check_cuda(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal), "beginning a capture");
  cudaGraph_t graph = nullptr;
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(native, &graph);  // the stream is usable again
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(native, &graph), "ending a capture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "instantiating a graph");
  return exec;
}

void graph_launch(void* graph, void* stream) {
  check_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)),
             "launching a graph");
}

void graph_destroy(void* graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace pipeinfer::cuda
