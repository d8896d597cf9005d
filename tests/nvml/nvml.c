/* A fake libnvidia-ml.so.1 that reads its answers from variables such as NVML_GPU0_NAME or NVML_GPU0_MIG1_UUID.

   NVML_INIT is the return code of nvmlInit, NVML_GPU0_ERROR that of asking for a GPU's handle and
   NVML_GPU0_NAME_ERROR that of asking a handle for its name. NVML_CALLS names a file that nvmlInit and
   nvmlShutdown each add a line to. A GPU with NVML_GPU0_MIG (its number of slots) is in MIG mode. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, SLOTS = 100 };

static const char *setting(const char *key) {
    char name[128];
    snprintf(name, sizeof name, "NVML_%s", key);
    return getenv(name);
}

/* A handle is 1 + GPU for a GPU, and SLOTS * (1 + GPU) + slot for a MIG device. */
static const char *property(uintptr_t device, const char *key) {
    char name[96];
    if (device < SLOTS)
        snprintf(name, sizeof name, "GPU%d_%s", (int)device - 1, key);
    else
        snprintf(name, sizeof name, "GPU%d_MIG%d_%s", (int)(device / SLOTS) - 1, (int)(device % SLOTS), key);
    return setting(name);
}

static int number(const char *text) { return text ? atoi(text) : 0; }

static int copy(const char *text, char *to, unsigned size) {
    if (!text) return NOT_SUPPORTED;
    snprintf(to, size, "%s", text);
    return SUCCESS;
}

static void note(const char *call) {
    const char *path = setting("CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s\n", call);
    fclose(file);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = number(setting("INIT"));
    if (code == SUCCESS) note("init");
    return code;
}

int nvmlShutdown(void) {
    note("shutdown");
    return number(setting("SHUTDOWN"));
}

const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return copy(setting("DRIVER"), to, size); }

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = number(setting("CUDA"));
    return *version ? SUCCESS : 12;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)number(setting("GPUS"));
    return number(setting("COUNT_ERROR"));
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, uintptr_t *device) {
    *device = index + 1;
    return number(property(*device, "ERROR"));
}

int nvmlDeviceGetName(uintptr_t device, char *to, unsigned size) {
    int code = number(property(device, "NAME_ERROR"));
    return code ? code : copy(property(device, "NAME"), to, size);
}

int nvmlDeviceGetUUID(uintptr_t device, char *to, unsigned size) { return copy(property(device, "UUID"), to, size); }

int nvmlDeviceGetMemoryInfo(uintptr_t device, unsigned long long *total_free_used) {
    const char *mebibytes = property(device, "MIB");
    memset(total_free_used, 0, 3 * sizeof *total_free_used);
    if (!mebibytes) return NOT_SUPPORTED;
    total_free_used[0] = strtoull(mebibytes, NULL, 10) << 20;
    total_free_used[1] = total_free_used[2] = total_free_used[0] / 2;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(uintptr_t device, int *major, int *minor) {
    const char *capability = property(device, "CAPABILITY");
    return capability && sscanf(capability, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(uintptr_t device, unsigned *current, unsigned *pending) {
    const char *slots = property(device, "MIG");
    *current = *pending = slots != NULL;
    /* as on every GPU without MIG */
    return slots || property(device, "MIG_OFF") ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(uintptr_t device, unsigned *count) {
    *count = (unsigned)number(property(device, "MIG"));
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(uintptr_t device, unsigned index, uintptr_t *mig) {
    *mig = SLOTS * device + index;
    return property(*mig, "UUID") ? SUCCESS : NOT_FOUND;
}
