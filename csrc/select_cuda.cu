// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "arena.h"
#include "kernel_code.h"
#include "select_launch.cuh"

namespace hired {
namespace {

#ifdef HIRED_EMULATE
constexpr Arena::Where kWhere = Arena::Where::kHost;
#else
constexpr Arena::Where kWhere = Arena::Where::kDevice;
#endif

// Rows of heads: one of each job.
int64_t head_rows_of(const SelectCall&) {
  return 0;
}
int64_t head_rows_of(const SelectQkCall& call) {
  return call.H * (call.P * split_queries(call.final.Q).jobs +
                   call.plan->init_rows * split_queries(call.init.Q).jobs);
}

DeviceWorkspace carve(const Call& call, int64_t head_rows, Arena* arena) {
  const Rules& rules = call.plan->rules;
  const int64_t P = call.P;
  DeviceWorkspace workspace{};
  workspace.probabilities = arena->take<float>(head_rows * rules.patches());
  workspace.keys = arena->take<uint32_t>(rules.policy == Policy::kPooled ? P * rules.tokens : 0);
  workspace.kept = arena->take<uint32_t>(P * mask_words(rules.tokens));
  workspace.budgets = arena->take<int32_t>(P);
  return workspace;
}

template <class SomeCall>
size_t bytes_of(const SomeCall& call) {
  Arena arena(nullptr, kWhere);
  carve(call, head_rows_of(call), &arena);
  return arena.bytes();
}

template <class SomeCall>
Status launch_any(const SomeCall& call, const CudaPlace& place) {
  Arena arena(place.workspace, kWhere);
  DeviceWorkspace workspace = carve(call, head_rows_of(call), &arena);
  workspace.counters = place.counters;
  if (Status status = set_device(place.device); !status.ok()) return status;
  const size_t pictures = call.plan->pictures.size();
  if (pictures <= kTinyBatch) return launch_all<kTinyBatch>(call, workspace, place);
#ifdef HIRED_CUDA_LARGE  // some of the code is for sm_70 or later
  if (pictures > kSmallBatch && has_large_kernels(place.device)) {
    return launch_large(call, workspace, place);
  }
#endif
  return launch_all<kSmallBatch>(call, workspace, place);
}

// Allocates and clears counters at once, whatever the streams of the device are doing.
Status make_counters(Counters** counters) {
  const OutsideCapture outside;
  if (Status status = cuda_status(outside.error(), "counters"); !status.ok()) return status;
  Counters* made = nullptr;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&made), sizeof(Counters));
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(made, 0, sizeof(Counters), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) {
    const cudaError_t destroyed = cudaStreamDestroy(stream);
    if (error == cudaSuccess) error = destroyed;
  }
  if (error == cudaSuccess) *counters = made;
  return cuda_status(error, "counters");
}

// Device, the stream's id, which no other has as long as the process lives (a handle is used again
// when its stream was destroyed), and the thread where one handle stands for the default streams of
// all threads.
using StreamName = std::tuple<int, unsigned long long, std::thread::id>;

Status name_of(int device, void* stream, StreamName* name) {
  unsigned long long id = 0;
  const cudaError_t error = cudaStreamGetId(static_cast<cudaStream_t>(stream), &id);
  const bool of_thread = stream == reinterpret_cast<void*>(uintptr_t{0x2});
  *name = {device, id, of_thread ? std::this_thread::get_id() : std::thread::id()};
  return cuda_status(error, "a stream");
}

}  // namespace

size_t cuda_workspace_bytes(const SelectCall& call) {
  return bytes_of(call);
}

size_t cuda_workspace_bytes(const SelectQkCall& call) {
  return bytes_of(call);
}

Status launch_select_cuda(const SelectCall& call, const CudaPlace& place) {
  return launch_any(call, place);
}

Status launch_select_qk_cuda(const SelectQkCall& call, const CudaPlace& place) {
  return launch_any(call, place);
}

Status load_select_kernels(const char* argument, int device) {
  const Status status = load_select<kTinyBatch>(argument, device);
  return status.ok() ? load_select<kSmallBatch>(argument, device) : status;
}

Status find_counters(int device, void* stream, Counters** counters) {
  static std::mutex mutex;
  static std::map<StreamName, Counters*> of_stream;
  if (Status status = set_device(device); !status.ok()) return status;
  if (Status status = load_kernels("features", device); !status.ok()) return status;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capturing);
  if (error != cudaSuccess) return cuda_status(error, "a stream");
  if (capturing != cudaStreamCaptureStatusNone) return make_counters(counters);
  StreamName name;
  if (Status status = name_of(device, stream, &name); !status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex);
  Counters*& known = of_stream[name];
  if (known == nullptr) {
    if (Status status = make_counters(&known); !status.ok()) return status;
  }
  *counters = known;
  return Status::Ok();
}

}  // namespace hired
