/* A fake driver with one A10G, as libcuda.so.1 and libnvidia-ml.so.1: enough for TensorFlow to search CUDA's
   libraries and to list the GPU if it finds all of them. It computes nothing. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { MAJOR = 75, MINOR = 76, MEMORY_GIB = 22 };

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "NVIDIA A10G"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)MEMORY_GIB << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == MAJOR ? 8 : attribute == MINOR ? 6 : 1;
    return 0;
}
int cuDeviceComputeCapability(int *major, int *minor, int device) { *major = 8; *minor = 6; return 0; }
int cuDeviceGetPCIBusId(char *id, int size, int device) { snprintf(id, size, "0000:00:1e.0"); return 0; }
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 1, 16); return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 1, 16); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)16; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) { return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)16; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = (size_t)MEMORY_GIB << 30; return 0; }
int cuGetErrorName(int error, const char **name) { *name = "FAKE"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "an error of the fake driver"; return 0; }

int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return 0; }
