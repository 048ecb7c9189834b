// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.hired_emulated: the CUDA launchers and kernels of csrc, compiled for the host by the
// emulator, behind the schemas of torch.ops.hired on CPU tensors. hired_emulated_configure() says
// how the next launches are scheduled, other functions beside it what goes wrong with them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <mutex>
#include <stdexcept>

#include "checks.h"
#include "cls_attention_cuda.h"
#include "cuda_emulator.h"
#include "outputs.h"
#include "schemas.h"
#include "select_cuda.h"

namespace {

using hired::Selected;
using hired::Status;
using torch::stable::Tensor;

int threads = hired::kThreads;
int streams = 1;
uint32_t planted_tickets = 0, planted_weighed = 0;  // in counters that should be zero
std::mutex machine;                                 // there is one

void raise(const Status& status) {
  if (status.ok()) return;
  throw std::runtime_error("hired_emulated: " + status.message() + "\n" +
                           hired_emulator::last_failure());
}

// The set of counters that the next launch will use.
hired::PictureCounters* next_set(hired::Counters* counters) {
  return counters->sets[(counters->tickets & hired::kOtherSet) == 0 ? 0 : 1];
}

bool ready_for_the_next(hired::Counters* counters) {
  static const hired::PictureCounters zero[hired::kLargeBatch] = {};
  return (counters->tickets & ~hired::kOtherSet) == 0 &&
         std::memcmp(next_set(counters), zero, sizeof zero) == 0;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  const size_t bytes = static_cast<size_t>(a.numel()) * a.element_size();
  return bytes == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), bytes) == 0;
}

// The call on every stream at once, their blocks in one pool; all have to return the same.
template <class SomeCall>
Selected run(const Tensor& features, SomeCall* call,
             Status (*launch)(const SomeCall&, const hired::CudaPlace&)) {
  if (call->P == 0) return hired::make_outputs(features, call);
  const std::lock_guard<std::mutex> lock(machine);
  std::vector<Selected> outs;
  std::vector<Tensor> workspaces;
  std::vector<hired::Counters*> counters(static_cast<size_t>(streams));
  Status status;
  std::string failure;
  try {
    hired_emulator::together([&] {
      for (size_t i = 0; i < counters.size() && status.ok(); ++i) {
        void* stream = i == 0 ? nullptr : &counters[i];
        raise(hired::find_counters(0, stream, &counters[i]));
        counters[i]->tickets += planted_tickets;
        next_set(counters[i])->weighed += planted_weighed;
        outs.push_back(hired::make_outputs(features, call));
        workspaces.push_back(hired::make_workspace(features, hired::cuda_workspace_bytes(*call)));
        status = launch(*call, {0, stream, counters[i], workspaces[i].mutable_data_ptr(), threads});
      }
    });
  } catch (const hired_emulator::Failure& error) {
    failure = error.what();
    for (hired::Counters* each : counters) {  // a GPU's context would be lost
      if (each != nullptr) std::memset(each, 0, sizeof *each);
    }
  }
  raise(status);
  if (!failure.empty()) throw std::runtime_error("hired_emulated: " + failure);
  for (size_t i = 0; i < counters.size(); ++i) {
    if (!ready_for_the_next(counters[i])) {
      throw std::runtime_error("hired_emulated: a launch left counters behind");
    }
    if (!same_bytes(std::get<0>(outs[i]), std::get<0>(outs[0])) ||
        !same_bytes(std::get<1>(outs[i]), std::get<1>(outs[0])) ||
        !same_bytes(std::get<2>(outs[i]), std::get<2>(outs[0]))) {
      throw std::runtime_error("hired_emulated: launches on two streams met");
    }
  }
  return outs[0];
}

// cls_attention on every stream at once.
Tensor emulate_cls_attention(Tensor query, Tensor key, int64_t tokens,
                             std::optional<double> scale) {
  hired::ClsAttentionCall call{};
  hired::check_cls_attention(query, key, tokens, scale, hired::kCudaLimits, &call);
  if (call.P == 0) return hired::make_attention(query, &call);
  const std::lock_guard<std::mutex> lock(machine);
  std::vector<Tensor> outs;
  std::vector<char> names(static_cast<size_t>(streams));
  Status status;
  std::string failure;
  try {
    hired_emulator::together([&] {
      for (size_t i = 0; i < names.size() && status.ok(); ++i) {
        void* stream = i == 0 ? nullptr : &names[i];
        outs.push_back(hired::make_attention(query, &call));
        status = hired::launch_cls_attention_cuda(call, 0, stream, threads);
      }
    });
  } catch (const hired_emulator::Failure& error) {
    failure = error.what();
  }
  raise(status);
  if (!failure.empty()) throw std::runtime_error("hired_emulated: " + failure);
  for (const Tensor& out : outs) {
    if (!same_bytes(out, outs[0])) {
      throw std::runtime_error("hired_emulated: launches on two streams met");
    }
  }
  return outs[0];
}

Selected emulate_select(Tensor features, Tensor attn_init, Tensor attn_final,
                        std::vector<int64_t> grids, std::vector<int64_t> budgets, double alpha,
                        std::optional<std::vector<int64_t>> crops, std::string policy,
                        std::string order, int64_t merge) {
  hired::Plan plan;
  hired::SelectCall call{};
  hired::check_select(features, attn_init, attn_final,
                      {grids, budgets, alpha, crops, policy, order, merge}, hired::kCudaLimits,
                      &plan, &call);
  return run(features, &call, hired::launch_select_cuda);
}

Selected emulate_select_qk(Tensor features, Tensor query_init, Tensor key_init, Tensor query_final,
                           Tensor key_final, std::vector<int64_t> grids,
                           std::vector<int64_t> budgets, double alpha, std::optional<double> scale,
                           std::optional<std::vector<int64_t>> crops, std::string policy,
                           std::string order, int64_t merge) {
  hired::Plan plan;
  hired::SelectQkCall call{};
  hired::check_select_qk(features, query_init, key_init, query_final, key_final,
                         {grids, budgets, alpha, crops, policy, order, merge}, scale,
                         hired::kCudaLimits, &plan, &call);
  return run(features, &call, hired::launch_select_qk_cuda);
}

}  // namespace

// `capability` is the major compute capability that the device claims: 6 or 9, say.
extern "C" __attribute__((visibility("default"))) void hired_emulated_configure(
    uint64_t seed, unsigned resident_blocks, int block_threads, int lock_step, int capability,
    int on_streams) {
  hired_emulator::Options& options = hired_emulator::options();
  options.seed = seed;
  options.resident_blocks = resident_blocks;
  options.warps =
      lock_step != 0 ? hired_emulator::Warps::kLockStep : hired_emulator::Warps::kIndependent;
  options.abort_on_failure = false;
  hired_emulator::device.major = capability;
  threads = block_threads;
  streams = on_streams;
}

// What the next launches find in their counters, and after how many polls a wait gives up.
extern "C" __attribute__((visibility("default"))) void hired_emulated_disturb(uint32_t tickets,
                                                                              uint32_t weighed,
                                                                              uint32_t spin_limit) {
  planted_tickets = tickets;
  planted_weighed = weighed;
  hired_emulator::options().spin_limit = spin_limit;
}

// Whether the driver is older than CUDA 12.3, and whether every stream is being captured.
extern "C" __attribute__((visibility("default"))) void hired_emulated_driver(int old,
                                                                             int capturing) {
  hired_emulator::device.old_driver = old != 0;
  hired_emulator::device.capture =
      capturing != 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

// Creates a stream, asks for its counters twice, destroys it. Null if it was given two sets.
extern "C" __attribute__((visibility("default"))) void* hired_emulated_counters_of_a_new_stream() {
  cudaStream_t stream = nullptr;
  hired::Counters *first = nullptr, *second = nullptr;
  if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return nullptr;
  const bool found =
      hired::find_counters(0, stream, &first).ok() && hired::find_counters(0, stream, &second).ok();
  static_cast<void>(cudaStreamDestroy(stream));
  return found && first == second ? first : nullptr;
}

STABLE_TORCH_LIBRARY(hired_emulated, m) {
  m.def(hired::kSelectSchema);
  m.def(hired::kSelectQkSchema);
  m.def(hired::kClsAttentionSchema);
}

STABLE_TORCH_LIBRARY_IMPL(hired_emulated, CPU, m) {
  m.impl("select", TORCH_BOX(&emulate_select));
  m.impl("select_qk", TORCH_BOX(&emulate_select_qk));
  m.impl("cls_attention", TORCH_BOX(&emulate_cls_attention));
}
