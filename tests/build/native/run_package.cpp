// SPDX-License-Identifier: Apache-2.0
//
// Runs an AOTInductor package that calls torch.ops.hired, without Python, and compares its results:
//   run_package libhired_kernels.so package.pt2 inputs.pt expected.pt
// Tensors are lists in the format of torch.save. Prints how many outputs agree to the bit; exits
// with 1 unless all do.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>

std::vector<at::Tensor> read_tensors(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const at::IValue saved = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const at::IValue& value : saved.toListRef()) tensors.push_back(value.toTensor());
  return tensors;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: run_package LIBRARY PACKAGE INPUTS EXPECTED\n";
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  if (dlsym(RTLD_DEFAULT, "Py_Initialize") != nullptr) {
    std::cerr << "Python is in this process\n";
    return 1;
  }
  std::vector<at::Tensor> inputs = read_tensors(argv[3]);
  const std::vector<at::Tensor> expected = read_tensors(argv[4]);
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  const std::vector<at::Tensor> outputs = loader.run(inputs);
  size_t equal = 0;
  for (size_t i = 0; i < outputs.size() && i < expected.size(); ++i) {
    equal += outputs[i].equal(expected[i]);
  }
  std::cout << equal << " of " << expected.size() << " outputs equal\n";
  return equal == expected.size() && outputs.size() == expected.size() ? 0 : 1;
}
