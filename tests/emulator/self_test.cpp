// SPDX-License-Identifier: Apache-2.0
//
// The emulator's own test: kernels that are right give the right answer under a hundred seeds, both
// warp models and several numbers of resident blocks; kernels with one planted error are caught,
// by a report or by a wrong answer under some seed. Ends in `N passed, N failed`. To build:
//
//   g++ -std=c++17 -O1 -DHIRED_EMULATE -ffp-contract=off -I tests/emulator
//       tests/emulator/{self_test,scheduler,primitives,blocks}.cpp -o self_test
//
// and once more with -fsanitize=address.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "self_test_kernels.h"

namespace emulator = hired_emulator;
using emulator::Failure;
using emulator::Options;
using emulator::Warps;

namespace {

constexpr int kSeeds = 100;
int passed = 0, failed = 0;
bool verbose = false;  // with any argument: under how many seeds each error was caught

void check(bool good, const std::string& what) {
  ++(good ? passed : failed);
  if (!good) printf("FAILED: %s\n", what.c_str());
}

// True when the answer is right.
using Attempt = std::function<bool()>;

// --- launches, each with its expected answer -----------------------------------------------------

template <class Kernel>
bool scan(Kernel kernel, unsigned threads) {
  constexpr unsigned kBlocks = 3;
  std::vector<unsigned> in(kBlocks * threads), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned>(i * 7 % 13);
  emulator::launch(kernel, kBlocks, threads, threads * sizeof(int),
                   ScanParams{in.data(), out.data()});
  unsigned sum = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    sum = (i % threads == 0 ? 0 : sum) + in[i];
    if (out[i] != sum) return false;
  }
  return true;
}

template <class Kernel>
bool histogram(Kernel kernel) {
  constexpr unsigned kBlocks = 5, kThreads = 96, kBins = 16;
  std::vector<unsigned> in(kBlocks * kThreads * 3), bins(kBins), expected(kBins);
  for (size_t i = 0; i < in.size(); ++i) ++expected[in[i] = i * i % kBins];
  emulator::launch(
      kernel, kBlocks, kThreads, kBins * sizeof(unsigned),
      HistogramParams{in.data(), static_cast<unsigned>(in.size()), bins.data(), kBins});
  return bins == expected;
}

template <class Kernel>
bool reduce(Kernel kernel) {
  constexpr unsigned kBlocks = 12, kThreads = 64;
  std::vector<unsigned> partial(kBlocks, 0xdead);
  unsigned counter = 0, result = 0;
  for (int launch = 0; launch < 2; ++launch) {  // the counter is left as it was found
    result = 0;
    emulator::launch(kernel, kBlocks, kThreads, kThreads * sizeof(unsigned),
                     ReduceParams{partial.data(), &counter, &result});
    const unsigned n = kBlocks * kThreads;
    if (result != n * (n - 1) / 2 || counter != 0) return false;
  }
  return true;
}

template <class Kernel>
bool chain(Kernel kernel) {
  constexpr unsigned kBlocks = 9;
  std::vector<unsigned> sums(kBlocks), flags(kBlocks);
  unsigned tickets = 0;
  emulator::launch(kernel, kBlocks, 64, 2 * sizeof(unsigned),
                   ChainParams{sums.data(), flags.data(), &tickets, kBlocks});
  unsigned sum = 0;
  for (unsigned i = 0; i < kBlocks; ++i) {
    sum += i + 1;
    if (sums[i] != sum) return false;
  }
  return true;
}

template <class Kernel>
bool exchange(Kernel kernel) {
  constexpr unsigned kBlocks = 12, kThreads = 32, kCluster = 4;
  emulator::options().cluster_size = kCluster;
  std::vector<int> out(kBlocks * kThreads, -1);
  emulator::launch(kernel, kBlocks, kThreads, kThreads * sizeof(int), ExchangeParams{out.data()});
  for (unsigned i = 0; i < out.size(); ++i) {
    const unsigned block = i / kThreads, first = block / kCluster * kCluster;
    const unsigned other = first + (block - first + 1) % kCluster;
    if (out[i] != static_cast<int>(1000 * other + i % kThreads)) return false;
  }
  return true;
}

template <class Kernel>
bool warp(Kernel kernel) {
  unsigned wrong = 0;
  emulator::launch(kernel, 2, 64, 64 * sizeof(int), WarpParams{&wrong});
  return wrong == 0;
}

// Two streams of two launches each: those of a stream one after the other, the streams as one pool.
bool two_streams() {
  constexpr unsigned kBlocks = 6, kThreads = 64,
                     kSum = kBlocks * kThreads * (kBlocks * kThreads - 1) / 2;
  std::vector<unsigned> partial(2 * kBlocks), counters(2), results(4);
  cudaStream_t streams[2];
  for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  emulator::together([&] {
    for (int i = 0; i < 4; ++i) {
      ReduceParams params{&partial[i % 2 * kBlocks], &counters[i % 2], &results[i]};
      void* arguments[] = {&params};
      cudaLaunchKernel(reduce_kernel, kBlocks, kThreads, arguments, kThreads * sizeof(unsigned),
                       streams[i % 2]);
    }
  });
  for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
  return results == std::vector<unsigned>(4, kSum);
}

// --- what must pass, what must be caught ---------------------------------------------------------

void set(int seed, Warps warps, unsigned resident) {
  Options& options = emulator::options();
  options = Options();
  options.seed = static_cast<uint64_t>(seed);
  options.warps = warps;
  options.resident_blocks = resident;
}

const char* name_of(Warps warps) {
  return warps == Warps::kLockStep ? "lock step" : "independent";
}

void passes(const std::string& name, Warps warps, const Attempt& attempt) {
  for (unsigned resident : {1u, 2u, 16u}) {
    std::string trouble;
    for (int seed = 0; seed < kSeeds && trouble.empty(); ++seed) {
      set(seed, warps, resident);
      try {
        if (!attempt()) trouble = "wrong answer under seed " + std::to_string(seed);
      } catch (const Failure& failure) {
        trouble = failure.what();
      }
    }
    check(trouble.empty(),
          name + ", " + name_of(warps) + ", " + std::to_string(resident) + " resident: " + trouble);
  }
}

void passes(const std::string& name, const Attempt& attempt) {
  passes(name, Warps::kIndependent, attempt);
  passes(name, Warps::kLockStep, attempt);
}

// Caught under at least `least` of the hundred seeds. A report must contain `message`; an empty
// one stands for a wrong answer.
void caught(const std::string& name, const std::string& message, int least, Warps warps,
            unsigned resident, const Attempt& attempt) {
  int count = 0;
  std::string other;
  for (int seed = 0; seed < kSeeds; ++seed) {
    set(seed, warps, resident);
    try {
      count += !attempt() && message.empty();
    } catch (const Failure& failure) {
      const std::string report = failure.what();
      const bool right = !message.empty() && report.find(message) != std::string::npos &&
                         report.find("self_test_kernels.h:") != std::string::npos;
      count += right;
      if (!right) other = "; instead: " + report;
    }
  }
  if (verbose) printf("%3d of 100: %s, %s\n", count, name.c_str(), name_of(warps));
  check(count >= least && other.empty(), name + ", " + name_of(warps) + ": caught under " +
                                             std::to_string(count) + " of 100 seeds" + other);
}

void caught(const std::string& name, const std::string& message, int least,
            const Attempt& attempt) {
  caught(name, message, least, Warps::kIndependent, 4, attempt);
  caught(name, message, least, Warps::kLockStep, 4, attempt);
}

template <class Kernel>
Attempt plain(Kernel kernel, unsigned blocks, unsigned threads) {
  return [=] {
    unsigned wrong = 0;
    emulator::launch(kernel, blocks, threads, 64 * sizeof(int), WarpParams{&wrong});
    return wrong == 0;
  };
}

#if defined(__SANITIZE_ADDRESS__)
// Runs in a process of its own, which AddressSanitizer is to end.
std::string last_words(const Attempt& attempt) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    attempt();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) {
    words.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return words;
}
#endif

void memory_errors() {
  set(1, Warps::kIndependent, 1);
#if defined(__SANITIZE_ADDRESS__)
  const auto dies = [](const std::string& name, const std::string& words, const Attempt& attempt) {
    check(last_words(attempt).find(words) != std::string::npos, name + ": AddressSanitizer");
  };
  dies("a write past shared memory", "heap-buffer-overflow", plain(overrun_kernel, 1, 64));
  dies("a read past shared memory", "heap-buffer-overflow", plain(overread_kernel, 1, 64));
  dies("a write past a thread's own array", "stack-buffer-overflow",
       plain(overrun_local_kernel, 1, 64));
  dies("shared memory of a block that ended", "use-after-poison",
       [] { return exchange(exit_before_read_kernel<true>); });
  // Passes over what threads that were left standing may have poisoned.
  check(scan(scan_kernel, 256), "stacks are reused after a failure");
#else
  caught("a write past shared memory", "was overrun", 100, Warps::kIndependent, 1, [] {
    try {
      return plain(overrun_kernel, 1, 64)();
    } catch (const Failure& failure) {  // no thread to blame: give it this file's name
      throw Failure(std::string(failure.what()) + " self_test_kernels.h:");
    }
  });
#endif
}

void host_interface() {
  set(1, Warps::kIndependent, 4);
  emulator::options().abort_on_failure = false;
  unsigned wrong = 0;
  WarpParams params{&wrong};
  void* arguments[] = {&params};
  const size_t most = 48 << 10;
  const auto launch = [&](dim3 grid, dim3 block, size_t shared) {
    return cudaLaunchKernel(uninitialised_kernel, grid, block, arguments, shared, nullptr);
  };
  check(launch(1, 64, most) == cudaSuccess, "48 KB of shared memory");
  check(launch(1, 64, most + 1) == cudaErrorInvalidValue, "more than 48 KB of shared memory");
  check(cudaGetLastError() == cudaErrorInvalidValue, "the last error");
  check(cudaGetLastError() == cudaSuccess, "the last error, taken");
  check(launch(0, 64, 256) == cudaErrorInvalidConfiguration, "an empty grid");
  check(launch(1, 1025, 256) == cudaErrorInvalidConfiguration, "a block of 1025 threads");
  check(launch(dim3(1, 65536), 64, 256) == cudaErrorInvalidConfiguration, "65536 rows of blocks");
  cudaFuncSetAttribute(uninitialised_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
  check(cudaGetLastError() == cudaErrorInvalidValue, "more shared memory than sm_61 has");
  emulator::device.shared_per_block_optin = 227 << 10;
  cudaFuncSetAttribute(uninitialised_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
  check(launch(1, 64, most + 1) == cudaSuccess, "more than 48 KB of shared memory, asked for");
  check(cudaLaunchKernel(divergent_exit_kernel, 1, 64, arguments, 256, nullptr) ==
            cudaErrorLaunchFailure,
        "a failure as an error");
  check(emulator::last_failure().find("__syncthreads") != std::string::npos, "its text");
  check(cudaLaunchCooperativeKernel(uninitialised_kernel, 5, 64, arguments, 256) ==
            cudaErrorCooperativeLaunchTooLarge,
        "a cooperative launch too large");
  emulator::device = emulator::Device();
  cudaGetLastError();
}

}  // namespace

int main(int count, char**) {
  verbose = count > 1;
  for (unsigned threads : {32u, 64u, 256u, 1024u}) {
    passes("scan of " + std::to_string(threads), [=] { return scan(scan_kernel, threads); });
  }
  passes("histogram", [] { return histogram(histogram_kernel); });
  passes("last block reduces", [] { return reduce(reduce_kernel); });
  passes("chain of tickets", [] { return chain(chain_kernel<Order::kTicket>); });
  passes("cluster exchange", [] { return exchange(exchange_kernel); });
  passes("warp primitives", [] { return warp(warp_kernel); });
  passes("parts of warps", Warps::kIndependent, [] { return warp(part_kernel); });
  passes("block votes", plain(block_vote_kernel, 3, 96));
  passes("coordinates", [] {
    unsigned wrong = 0;
    emulator::launch(coordinates_kernel, dim3(3, 2, 2), dim3(4, 3, 5), 0, WarpParams{&wrong});
    return wrong == 3 * 2 * 2 * 4 * 3 * 5;
  });
  passes("a warp mate's flag", Warps::kIndependent, plain(mate_kernel, 1, 32));
  passes("two streams", two_streams);

  // Races: a wrong answer.
  caught("scan without its barrier", "", 50, [] { return scan(scan_race_kernel, 256); });
  caught("histogram not yet cleared", "", 50, [] { return histogram(histogram_race_kernel); });
  caught("arrival before the data", "", 10, [] { return reduce(reduce_early_kernel); });
  caught("uninitialised shared memory", "", 90, plain(uninitialised_kernel, 1, 64));
  caught("cluster exchange without a barrier", "", 50,
         [] { return exchange(exchange_race_kernel); });

  // Waits.
  caught("waits for a higher block", "livelock", 50, Warps::kIndependent, 2,
         [] { return chain(chain_kernel<Order::kHigherBlock>); });
  caught("waits for a lower block", "livelock", 50, Warps::kIndependent, 2,
         [] { return chain(chain_kernel<Order::kLowerBlock>); });
  caught("waits for a warp mate", "livelock", 50, Warps::kLockStep, 4, plain(mate_kernel, 1, 32));
  caught("waits for nothing, with a fence", "livelock", 100, plain(forever_kernel, 2, 64));
  caught("two barriers that wait for each other", "deadlock", 100,
         [] { return exchange(cross_barrier_kernel); });

  // Barriers.
  caught("a thread exits", "divergent barrier", 100, plain(divergent_exit_kernel, 2, 64));
  caught("two barriers", "divergent barrier", 100, plain(divergent_site_kernel, 2, 64));
  caught("two kinds of barrier", "divergent barrier", 100, plain(divergent_kind_kernel, 2, 64));

  // Warp primitives.
  caught("a lane that exits", "exit", 100, plain(shuffle_exit_kernel, 1, 64));
  caught("a lane at a barrier", "__shfl_sync", 100, plain(shuffle_barrier_kernel, 1, 64));
  caught("a mask without the caller", "does not name the calling lane", 100, Warps::kIndependent, 4,
         plain(shuffle_outsider_kernel, 1, 64));
  caught("a lane that is not there", "does not have", 100, plain(shuffle_full_kernel, 1, 40));
  caught("a width of 12", "not a power of 2", 100, plain(shuffle_width_kernel, 1, 64));
  caught("a source outside the mask", "does not name", 100, Warps::kIndependent, 4,
         plain(shuffle_source_kernel, 1, 64));
  caught("two primitives", "another primitive", 100, plain(two_primitives_kernel, 1, 64));
  caught("masks that disagree", "wait for this lane", 100, Warps::kIndependent, 4,
         plain(two_masks_kernel, 1, 64));
  caught("a part of a warp on sm_61", "is not full", 100, Warps::kLockStep, 4,
         plain(part_kernel, 1, 64));

  // Memory.
  caught("a misaligned vector", "misaligned", 100, plain(misaligned_kernel, 1, 64));
  caught("shared memory of a block that ended", "ended", 5, Warps::kIndependent, 4,
         [] { return exchange(exit_before_read_kernel<false>); });
  memory_errors();
  host_interface();

  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
