#include "aten_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>

#include "pipeinfer/model/llama_stage.h"
#include "scalar_type.h"

namespace pipeinfer {

void set_cpu_threads(int n) { at::set_num_threads(n); }

std::string torch_version() { return TORCH_VERSION; }

namespace model {

namespace {

// A view; nothing is written through what was const.
at::Tensor view(const void* data, at::IntArrayRef shape, DType dtype) {
  return at::from_blob(const_cast<void*>(data), shape, at::TensorOptions().dtype(scalar_type(dtype)));
}

}  // namespace

void linear_cpu(void* out, const void* x, const void* weight, const void* bias, int n_rows, int n_out,
                int n_in, DType dtype, kernels::Epilogue epilogue) {
  const c10::InferenceMode no_grad;
  const at::Tensor x_view = view(x, {n_rows, n_in}, dtype);
  const at::Tensor weight_t = view(weight, {n_out, n_in}, dtype).t();
  const bool to_fp32 = epilogue == kernels::Epilogue::store_fp32;
  at::Tensor out_view = view(out, {n_rows, n_out}, to_fp32 ? DType::fp32 : dtype);
  const auto sum = [&] {
    return bias ? at::addmm(view(bias, {n_out}, dtype), x_view, weight_t) : at::mm(x_view, weight_t);
  };
  if (epilogue == kernels::Epilogue::add) {
    // Not as a sum that starts with out: how ATen rounds that depends on the number of rows.
    out_view.add_(sum());
  } else if (to_fp32 && dtype != DType::fp32) {
    out_view.copy_(sum());
  } else if (bias) {
    at::addmm_out(out_view, view(bias, {n_out}, dtype), x_view, weight_t);
  } else {
    at::mm_out(out_view, x_view, weight_t);
  }
}

}  // namespace model
}  // namespace pipeinfer
