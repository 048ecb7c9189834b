// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.hired_emulated: the CUDA launchers and kernels of csrc, compiled for the host by the
// emulator, behind the schemas of torch.ops.hired on CPU tensors. hired_emulated_configure() says
// how the next launches are scheduled.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <mutex>
#include <stdexcept>

#include "checks.h"
#include "cuda_emulator.h"
#include "operators.h"
#include "select_cuda.h"

namespace {

using hired::Selected;
using hired::Status;
using torch::headeronly::ScalarType;
using torch::stable::new_empty;
using torch::stable::Tensor;

int threads = hired::kThreads;

void raise(const Status& status) {
  if (status.ok()) return;
  throw std::runtime_error("hired_emulated: " + status.message() + "\n" +
                           hired_emulator::last_failure());
}

template <class SomeCall>
Selected run(const Tensor& features, SomeCall* call,
             Status (*launch)(const SomeCall&, const hired::CudaPlace&)) {
  const int64_t K = call->plan->output_rows, P = call->P;
  Selected out{new_empty(features, {K, features.size(2)}),
               new_empty(features, {K}, ScalarType::Long),
               new_empty(features, {P}, ScalarType::Long)};
  auto& [tokens, indices, counts] = out;
  call->output = {tokens.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr()),
                  static_cast<int64_t*>(counts.mutable_data_ptr())};
  if (P == 0) return out;
  static std::mutex mutex;  // there is one emulated machine
  const std::lock_guard<std::mutex> lock(mutex);
  const auto bytes = static_cast<int64_t>(hired::cuda_workspace_bytes(*call));
  const Tensor workspace = new_empty(features, {bytes}, ScalarType::Byte);
  hired::Counters* counters = nullptr;
  raise(hired::find_counters(0, nullptr, &counters));
  const Status status =
      launch(*call, {0, nullptr, counters, workspace.mutable_data_ptr(), threads});
  if (!status.ok()) std::memset(counters, 0, sizeof *counters);  // a GPU's context would be lost
  raise(status);
  static const hired::Counters zero{};
  if (std::memcmp(counters, &zero, sizeof zero) != 0) {
    throw std::runtime_error("hired_emulated: a launch left counters behind");
  }
  return out;
}

Selected emulate_select(Tensor features, Tensor attn_init, Tensor attn_final,
                        std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                        std::optional<std::vector<int64_t>> crops, std::string policy,
                        std::string order) {
  hired::Plan plan;
  hired::SelectCall call{};
  hired::check_select(features, attn_init, attn_final,
                      {grids, budgets, alpha, crops, policy, order}, hired::kCudaLimits, &plan,
                      &call);
  return run(features, &call, hired::launch_select_cuda);
}

Selected emulate_select_qk(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                           Tensor key_final, std::vector<int64_t> grids,
                           std::vector<int64_t> budgets, double alpha, std::optional<double> scale,
                           std::optional<std::vector<int64_t>> crops, std::string policy,
                           std::string order) {
  hired::Plan plan;
  hired::SelectQkCall call{};
  hired::check_select_qk(features, query_init, key_init, query_final, key_final,
                         {grids, budgets, alpha, crops, policy, order}, scale, hired::kCudaLimits,
                         &plan, &call);
  return run(features, &call, hired::launch_select_qk_cuda);
}

}  // namespace

// `capability` is the major compute capability that the device claims: 6 or 9, say.
extern "C" __attribute__((visibility("default"))) void hired_emulated_configure(
    uint64_t seed, unsigned resident_blocks, int block_threads, int lock_step, int capability) {
  hired_emulator::Options& options = hired_emulator::options();
  options.seed = seed;
  options.resident_blocks = resident_blocks;
  options.warps =
      lock_step != 0 ? hired_emulator::Warps::kLockStep : hired_emulator::Warps::kIndependent;
  options.abort_on_failure = false;
  hired_emulator::device.major = capability;
  threads = block_threads;
}

STABLE_TORCH_LIBRARY(hired_emulated, m) {
  m.def(
      "select(Tensor features, Tensor attn_init, Tensor attn_final, SymInt[] grids, "
      "SymInt[] budgets, float alpha=0.5, *, SymInt[]? crops=None, str policy=\"exact\", "
      "str order=\"raster\") -> (Tensor tokens, Tensor indices, Tensor counts)");
  m.def(
      "select_qk(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final, "
      "Tensor key_final, SymInt[] grids, SymInt[] budgets, float alpha=0.5, *, "
      "float? scale=None, SymInt[]? crops=None, str policy=\"exact\", str order=\"raster\") "
      "-> (Tensor tokens, Tensor indices, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(hired_emulated, CPU, m) {
  m.impl("select", TORCH_BOX(&emulate_select));
  m.impl("select_qk", TORCH_BOX(&emulate_select_qk));
}
