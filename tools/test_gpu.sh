#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds for the GPU that is here and runs all that needs one, with the python3 on PATH (PYTHON) and
# nothing from a network; about 7 minutes on 16 cores, under 10. The last line says how many passed
# and failed, over all tests and tools.
#
#   tools/test_gpu.sh          everything
#   tools/test_gpu.sh build    the build alone: build/gpu/lib, to be put on PYTHONPATH
#
# Logs and JUnit results: test-gpu.log and test-gpu.xml in $OUT, or out/. A stage that fails or
# outlives its limit does not stop the next.
# SERIAL=1 runs one stage after the other. HIRED_CUDA_ARCHS, HIRED_CUDA_PTX: as setup.py has them.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$(command -v "${PYTHON:-python3}") || { echo "test_gpu: no ${PYTHON:-python3}" >&2; exit 2; }
out=${OUT:-out}
mkdir -p build/gpu/lib "$out"
out=$(cd "$out" && pwd)
logs=$root/build/gpu/logs
rm -rf "$logs"
mkdir -p "$logs"

# start NAME SECONDS COMMAND...: in the background, its output to NAME.log, its status to NAME.rc.
start() {
  local name=$1 limit=$2
  shift 2
  (
    SECONDS=0
    timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1
    status=$?
    echo "$status" >"$logs/$name.rc"
    echo "$name: status $status after $SECONDS s"
  ) &
  [ -z "${SERIAL:-}" ] || wait
}

# build FOLDER ARCHS PTX: a package in FOLDER/lib.
build() {
  env HIRED_NATIVE=1 HIRED_CUDA_ARCHS="$2" HIRED_CUDA_PTX="$3" \
    "$python" setup.py -q build --build-base "$1" --build-lib "$1/lib"
}
export python
export -f build

echo "python: $("$python" --version 2>&1), nvcc: $(command -v "${CUDACXX:-nvcc}" || echo none)"
nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader || true
start build 150 bash -c 'build build/gpu "$0" "$1"' "${HIRED_CUDA_ARCHS:-auto}" "${HIRED_CUDA_PTX:-}"
wait
if [ "$(cat "$logs/build.rc")" != 0 ]; then
  tail -n 30 "$logs/build.log" >&2
  echo "0 passed, 1 failed"
  exit 1
fi
[ "${1:-}" != build ] || exit 0
# Code for Pascal alone, for test_gpu_ptx.py, which is skipped where there is no compiler for it
# and none was made beforehand.
if [ -e "${HIRED_PASCAL_COMPILER:-build/pascal}/complete" ]; then
  start build-pascal 60 bash -c 'build build/pascal-path 61 ""'
  wait
fi

# Python finds the package of the folder it starts in before any other: that is the built copy.
export PYTHONPATH=$root/build/gpu/lib HIRED_TEST_TARGET=cuda PYTHONDONTWRITEBYTECODE=1
cd build/gpu/lib
start info 60 "$python" -m hired_kernels info
# tests NAME SECONDS FILE ARGUMENTS...: a file of tests under the name of its log.
tests() {
  local name=$1 limit=$2 file=$3
  shift 3
  start "$name" "$limit" "$python" -m pytest -p no:cacheprovider -c "$root/pyproject.toml" \
    --rootdir "$root" -ra --junitxml "$logs/$name.xml" "$root/tests/$file.py" "$@"
}
# The Triton kernels: a new shape takes seconds to compile, so that of tables of shapes some do.
export TRITON_CACHE_DIR=$root/build/gpu/triton
in_triton() { HIRED_BACKEND=triton HIRED_TEST_TARGET=triton HIRED_TEST_EXAMPLES=5 "$@"; }
for name in test_gpu test_gpu_calls; do
  in_triton tests "triton-$name" 330 "$name" -k "not rows_of_any_dtype and not begin_anywhere"
done
for name in test_parity test_invariants test_cls_attention; do
  in_triton tests "triton-$name" 330 "$name" -m "not whole_list"
done
for name in test_gpu test_gpu_calls test_gpu_ptx test_parity test_invariants test_cls_attention \
  test_bad_calls; do
  tests "$name" 160 "$name"
done
start short-list 60 "$python" "$root/tests/gpu_short_list.py"
wait
# Memory straight from the driver: what lies beside a tensor is then nobody's, and the tools know.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck initcheck synccheck; do
  start "$tool" 100 "${sanitizer:-compute-sanitizer}" --tool "$tool" --error-exitcode 1 \
    --report-api-errors no "$python" "$root/tests/gpu_short_list.py"
  in_triton start "triton-$tool" 100 "${sanitizer:-compute-sanitizer}" --tool "$tool" \
    --error-exitcode 1 --report-api-errors no "$python" "$root/tests/gpu_short_list.py"
done
wait

cat "$logs/info.log"
"$python" - "$logs" "$out" <<'EOF'
import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

logs, out = map(Path, sys.argv[1:])
suites, passed, failed, skipped = xml.Element("testsuites"), 0, 0, 0
with (out / "test-gpu.log").open("w") as log:
    for rc in sorted(logs.glob("*.rc")):
        name, status = rc.stem, rc.read_text().strip()
        text = (logs / f"{name}.log").read_text(errors="replace")
        log.write(f"==== {name}: status {status}\n{text[-2_000_000:]}\n")
        try:
            suite = xml.parse(logs / f"{name}.xml").getroot().find("testsuite")
        except (OSError, xml.ParseError):
            suite = None
        if suite is None:  # a tool, a build, or tests that were stopped: one of its kind
            found = re.findall(r"SUMMARY: (\d+) ", text)
            good = status == "0" and (set(found) == {"0"} if "check" in name else True)
            passed, failed = passed + good, failed + (not good)
            if not good:
                print(f"---- {name}: status {status}\n" + "\n".join(text.splitlines()[-15:]))
            continue
        suites.append(suite)
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        bad = number["failures"] + number["errors"]
        passed += number["tests"] - bad - number["skipped"]
        skipped += number["skipped"]
        failed += max(bad, int(status not in ("0", "5")))  # 5: nothing to run
        print(f"{name}: {number['tests']} tests, {bad} failed, {number['skipped']} skipped")
        for test in suite.iter("testcase"):
            for kind in ("failure", "error"):
                for problem in test.findall(kind):
                    line = (problem.get("message") or "").strip().partition("\n")[0][:160]
                    print(f"  {test.get('classname')}::{test.get('name')}: {line}")
            for problem in test.findall("skipped"):
                print(f"  skipped: {test.get('name')}: {(problem.text or '')[-120:]}")
xml.ElementTree(suites).write(out / "test-gpu.xml")
print(f"logs: {out / 'test-gpu.log'}; {skipped} skipped")
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
EOF
