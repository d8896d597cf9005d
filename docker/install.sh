#!/bin/sh
# install.sh LOCK: install a lock's packages into /opt/venv, without what no image ever uses.
set -eux

python3 -m pip install --quiet --no-cache-dir --no-compile --disable-pip-version-check --require-hashes -r "$1"
cd "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# openvino_telemetry reports to Google Analytics, and OpenVINO has a stub for when it cannot be imported;
# TensorFlow needs libclang only to be built. Their metadata stay, so that pip finds nothing missing.
rm -rf openvino_telemetry clang/native
rm -rf tensorflow/include openvino/include openvino/cmake nvidia/*/include
# OpenVINO's parts for Intel GPUs and NPUs, which no SageMaker instance has.
rm -f openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so openvino/libs/cache.json
find . -type d -name tests -path './numpy/*' -prune -exec rm -rf {} +

# The loader finds CUDA's libraries by its own configuration. TensorFlow's RUNPATH does not name all of their
# folders (2.21 forgot cusolver), and with LD_LIBRARY_PATH unset no entry of it can be empty.
if [ -d nvidia ]; then
    # Nothing links or loads these: the multi-GPU solver and NVRTC for another memory allocator.
    rm -f nvidia/cusolver/lib/libcusolverMg.so.* nvidia/cuda_nvrtc/lib/libnvrtc.alt.so.*
    find nvidia -name '*.a' -delete
    find "$PWD/nvidia" -mindepth 2 -maxdepth 2 -name lib | sort >/etc/ld.so.conf.d/cuda-wheels.conf
    ldconfig
    rm -rf /var/cache/ldconfig/*
fi

# A root file system that is read-only cannot keep what Python compiles, and would compile it at each start.
python3 -m compileall -q -j 0 . >/dev/null || true # some packages carry templates that are no Python
