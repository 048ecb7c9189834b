// SPDX-License-Identifier: Apache-2.0
//
// What launchers ask of the CUDA runtime and of a call's pointers before they launch.
#pragma once

#include <string>

#include "heads.cuh"
#include "status.h"

namespace hired {
inline namespace HIRED_ISA {

inline Status cuda_status(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return Status::Ok();
  return Status::Refused("cuda", doing, cudaGetErrorString(error));
}

// The runtime linked into this library follows the caller's device; where it does not, it is told.
inline Status set_device(int device) {
  int current = -1;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  return cuda_status(error, "a device");
}

// How many blocks of a kernel the device holds at once, by the registers that they are given: so
// many on a multiprocessor, on Pascal and later.
inline Status resident_blocks(int device, int pascal, int later, int64_t* blocks) {
  int multiprocessors = 0, major = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  *blocks = int64_t{multiprocessors} * (major < 7 ? pascal : later);
  return cuda_status(error, "a device");
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

// Loads kernels, whatever is being captured; says in words what would else be "no kernel image".
template <class... Kernels>
Status load_code(const char* argument, int device, Kernels*... kernels) {
  const OutsideCapture outside;
  if (Status status = cuda_status(outside.error(), "code"); !status.ok()) return status;
  cudaError_t error = cudaSuccess;
  cudaFuncAttributes attributes;
  (..., (error = error == cudaSuccess ? cudaFuncGetAttributes(&attributes, kernels) : error));
  if (error == cudaSuccess) return Status::Ok();
  if (error == cudaErrorStreamCaptureUnsupported) {
    return Status::Refused(argument,
                           "a call of some operator on this device before the first capture, since "
                           "its driver, older than CUDA 12.3, loads no code during one",
                           "none");
  }
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return cuda_status(error, "a device");
  }
  return Status::Refused(
      argument, "a GPU that this build has code for",
      "sm_" + std::to_string(major) + std::to_string(minor) + " (" + cudaGetErrorString(error) +
          "): `python -m hired_kernels info` says what it has and how to get the right build");
}

// A GPU reads a number only from a multiple of its size; PyTorch's own tensors always lie so.
template <class Scalar>
Status check_aligned(const char* argument, const void* data) {
  const auto beyond = reinterpret_cast<uintptr_t>(data) % sizeof(Scalar);
  if (beyond == 0) return Status::Ok();
  return Status::Refused(argument, "data at a multiple of its element's size on a GPU",
                         "an address " + std::to_string(beyond) + " bytes beyond one");
}

// How many lanes share a key in 16-byte pieces, 8, 16 or 32; 0 where a key does not begin and end
// at 16 bytes. It says in which order products add up, so it may depend on nothing that another
// call on the same keys has otherwise.
template <class Scalar>
int32_t key_lanes(const QueriesKeys& layer, int64_t Dh) {
  constexpr int64_t kPiece = 16 / sizeof(Scalar);
  if (Dh % kPiece != 0 || reinterpret_cast<uintptr_t>(layer.key) % 16 != 0) return 0;
  for (int64_t stride : {layer.key_stride_row, layer.key_stride_n, layer.key_stride_h}) {
    if (stride % kPiece != 0) return 0;
  }
  int32_t lanes = 8;
  while (lanes < kWarp && lanes * kPiece < Dh) lanes *= 2;
  return lanes;
}

// Shared memory of attend().
inline int64_t head_bytes(int64_t N) {
  return N * static_cast<int64_t>(sizeof(float));
}

}  // namespace HIRED_ISA
}  // namespace hired
