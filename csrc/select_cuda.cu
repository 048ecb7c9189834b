// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "arena.h"
#include "select_launch.cuh"

namespace hired {
namespace {

#ifdef HIRED_EMULATE
constexpr Arena::Where kWhere = Arena::Where::kHost;
#else
constexpr Arena::Where kWhere = Arena::Where::kDevice;
#endif

DeviceWorkspace carve(const Call& call, bool from_keys, Arena* arena) {
  const int64_t P = call.P, T = call.plan->rules.tokens;
  const int64_t score_rows = from_keys ? P + call.plan->init_rows : 0;
  DeviceWorkspace workspace{};
  workspace.probabilities = arena->take<float>(score_rows * call.H * T);
  workspace.kept = arena->take<int32_t>(P * T);
  workspace.row_counts = arena->take<uint32_t>(P * call.plan->rules.side);
  workspace.budgets = arena->take<int32_t>(P);
  return workspace;
}

size_t bytes_of(const Call& call, bool from_keys) {
  Arena arena(nullptr, kWhere);
  carve(call, from_keys, &arena);
  return arena.bytes();
}

// The runtime linked into this library follows the caller's device; where it does not, it is told.
Status set_device(int device) {
  int current = -1;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  return cuda_status(error, "a device");
}

template <class SomeCall>
Status launch_any(const SomeCall& call, bool from_keys, const CudaPlace& place) {
  Arena arena(place.workspace, kWhere);
  DeviceWorkspace workspace = carve(call, from_keys, &arena);
  workspace.counters = place.counters;
  if (Status status = set_device(place.device); !status.ok()) return status;
#ifdef HIRED_CUDA_LARGE  // some of the code is for sm_70 or later
  if (call.plan->pictures.size() > kSmallBatch && has_large(place.device)) {
    return launch_large(call, workspace, place);
  }
#endif
  return launch_all<kSmallBatch>(call, workspace, place);
}

// Finds out before the first launch, and says so in words, what would be "no kernel image".
Status check_code(int device) {
  cudaFuncAttributes attributes;
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, select_kernel<float, false, kSmallBatch>);
  if (error == cudaSuccess) return Status::Ok();
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return cuda_status(error, "a device");
  }
  return Status::Refused(
      "features", "a GPU that this build has code for",
      "sm_" + std::to_string(major) + std::to_string(minor) + " (" + cudaGetErrorString(error) +
          "): `python -m hired_kernels info` says what it has and how to get the right build");
}

// For as long as it lives this thread may do what a capture of some stream would else forbid: load
// code, allocate, clear memory, wait. Nothing of it is for the graph.
class OutsideCapture {
 public:
  OutsideCapture() { error_ = cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() {
    if (error_ == cudaSuccess) static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));
  }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;
  cudaError_t error() const { return error_; }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  cudaError_t error_;
};

// Allocates and clears counters at once, whatever the streams of the device are doing.
Status make_counters(Counters** counters) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaMalloc(reinterpret_cast<void**>(counters), sizeof(Counters));
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaMemsetAsync(*counters, 0, sizeof(Counters), stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (stream != nullptr) {
    const cudaError_t destroyed = cudaStreamDestroy(stream);
    if (error == cudaSuccess) error = destroyed;
  }
  return cuda_status(error, "counters");
}

}  // namespace

size_t cuda_workspace_bytes(const SelectCall& call) {
  return bytes_of(call, false);
}

size_t cuda_workspace_bytes(const SelectQkCall& call) {
  return bytes_of(call, true);
}

Status launch_select_cuda(const SelectCall& call, const CudaPlace& place) {
  return launch_any(call, false, place);
}

Status launch_select_qk_cuda(const SelectQkCall& call, const CudaPlace& place) {
  return launch_any(call, true, place);
}

Status find_counters(int device, void* stream, Counters** counters) {
  static std::mutex mutex;
  static std::map<std::tuple<int, void*, std::thread::id>, Counters*> of_stream;
  if (Status status = set_device(device); !status.ok()) return status;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &capturing);
  if (error != cudaSuccess) return cuda_status(error, "a stream");
  const bool captured = capturing != cudaStreamCaptureStatusNone;
  // One handle stands for the default streams of all threads, where they have one each.
  const bool of_thread = stream == reinterpret_cast<void*>(uintptr_t{0x2});
  const std::lock_guard<std::mutex> lock(mutex);
  Counters*& known =
      of_stream[{device, stream, of_thread ? std::this_thread::get_id() : std::thread::id()}];
  if (captured || known == nullptr) {
    const OutsideCapture outside;
    if (Status status = cuda_status(outside.error(), "counters"); !status.ok()) return status;
    if (Status status = check_code(device); !status.ok()) return status;
    Counters* made = nullptr;
    if (Status status = make_counters(&made); !status.ok()) return status;
    if (!captured) known = made;
    *counters = made;
    return Status::Ok();
  }
  *counters = known;
  return Status::Ok();
}

}  // namespace hired
