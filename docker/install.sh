#!/bin/sh
# install.sh LOCK: install the packages of a lock file into /opt/venv, without the files that no image uses.
set -eux

python3 -m pip install --quiet --no-cache-dir --no-compile --disable-pip-version-check --require-hashes -r "$1"
cd "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# openvino_telemetry reports to Google Analytics; OpenVINO has a stub in case it cannot be imported. TensorFlow
# needs libclang only at build time. Their metadata is kept, so that `pip check` reports nothing missing.
rm -rf openvino_telemetry clang/native
rm -rf tensorflow/include openvino/include openvino/cmake nvidia/*/include
# OpenVINO's plugins for Intel GPUs and NPUs, which no SageMaker instance has.
rm -f openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so openvino/libs/cache.json
find . -type d -name tests -path './numpy/*' -prune -exec rm -rf {} +

# The dynamic loader finds the CUDA libraries through its configuration: TensorFlow's RUNPATH does not list all of
# their folders (2.21 lacks cusolver), and an empty entry in LD_LIBRARY_PATH would be unsafe.
if [ -d nvidia ]; then
    # Nothing links or loads these: the multi-GPU solver, and NVRTC with another memory allocator.
    rm -f nvidia/cusolver/lib/libcusolverMg.so.* nvidia/cuda_nvrtc/lib/libnvrtc.alt.so.*
    find nvidia -name '*.a' -delete
    find "$PWD/nvidia" -mindepth 2 -maxdepth 2 -name lib | sort >/etc/ld.so.conf.d/cuda-wheels.conf
    ldconfig
    rm -rf /var/cache/ldconfig/*
fi

# Compile now: on a read-only root file system, Python would compile again at every start.
python3 -m compileall -q -j 0 . >/dev/null || true # some packages have .py templates that are not valid Python
