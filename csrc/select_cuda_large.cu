// SPDX-License-Identifier: Apache-2.0
//
// Launches of up to kLargeBatch pictures. Their parameters outgrow the 4 KB of sm_61, so this file
// is compiled for sm_70 and later alone.
#include "select_launch.cuh"

namespace hired {

Status launch_large(const SelectCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place) {
  return launch_all<kLargeBatch>(call, workspace, place);
}

Status launch_large(const SelectQkCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place) {
  return launch_all<kLargeBatch>(call, workspace, place);
}

}  // namespace hired
