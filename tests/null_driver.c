/* A CUDA driver that does nothing, so that Triton's launches run to their end without a GPU: it answers what Triton asks of an
   H100, takes pointers as they come, and notes of each launch the kernel, the grid and the arguments. See null_driver.py. */

#include "cuda.h"
#include <stdio.h>
#include <string.h>

#define ARGUMENTS 64
#define KEPT 64
#define FUNCTIONS 4096

static char message[256] = "the null driver refuses";
static long modules;

static long launches;
static struct {
  long function, grid[3], stream, cooperative, count;
  unsigned char arguments[ARGUMENTS][128];
} started[KEPT]; /* launch n at n modulo KEPT */
static struct {
  int count, bytes[ARGUMENTS];
} expected[FUNCTIONS];

long null_driver_launches(void) { return launches; }
void *null_driver_started(void) { return started; }

/* The bytes of each argument of a kernel; of others no arguments are kept. */
void null_driver_expect(long function, const int *bytes, int count) {
  memcpy(expected[function % FUNCTIONS].bytes, bytes, sizeof(int) * count);
  expected[function % FUNCTIONS].count = count;
}

CUresult cuGetErrorString(CUresult error, const char **text) { return *text = message, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return *context = (CUcontext)1, CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  default: *value = 1000000;
  }
  return CUDA_SUCCESS;
}

/* Every compiled kernel is a module of its own, so its number tells which was launched. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = (CUmodule)++modules, CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  return *function = (CUfunction)module, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  return *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
  return *count = 1, CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  return *(CUdeviceptr *)value = pointer, CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  if (config->gridDimX < 1 || config->gridDimY < 1 || config->gridDimZ < 1 || config->gridDimY > 65535 ||
      config->gridDimZ > 65535 || config->sharedMemBytes > 232448) {
    snprintf(message, sizeof message, "a launch of %u x %u x %u programs with %u bytes of shared memory", config->gridDimX,
             config->gridDimY, config->gridDimZ, config->sharedMemBytes);
    return CUDA_ERROR_INVALID_VALUE;
  }
  int at = launches++ % KEPT;
  memset(&started[at], 0, sizeof started[at]);
  started[at].function = (long)function;
  started[at].grid[0] = config->gridDimX, started[at].grid[1] = config->gridDimY, started[at].grid[2] = config->gridDimZ;
  started[at].stream = (long)config->hStream;
  for (unsigned i = 0; i < config->numAttrs; i++)
    started[at].cooperative |= config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
  started[at].count = expected[(long)function % FUNCTIONS].count;
  for (int i = 0; i < started[at].count; i++)
    memcpy(started[at].arguments[i], arguments[i], expected[(long)function % FUNCTIONS].bytes[i]);
  return CUDA_SUCCESS;
}

/* The map says what it was made of, where the driver's is secret; what the hardware does not take is refused as there. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  int width = (int)type < 13 ? bytes[type] : 1;
  unsigned inner = box[0] * width, most = swizzle == 1 ? 32 : swizzle == 2 ? 64 : swizzle == 3 ? 128 : 1u << 30;
  const char *wrong = (size_t)address % 16 ? "address" : inner % 16 || inner > most ? "inner box" : NULL;
  for (unsigned i = 0; i < rank; i++) {
    if (sizes[i] < 1 || sizes[i] > 1ull << 32) wrong = "size";
    if (box[i] < 1 || box[i] > 256) wrong = "box";
    if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40)) wrong = "stride";
  }
  if (wrong) {
    snprintf(message, sizeof message, "a tensor map's %s", wrong);
    return CUDA_ERROR_INVALID_VALUE;
  }
  cuuint64_t said[16] = {(size_t)address, type, rank, swizzle, fill, promotion};
  for (unsigned i = 0; i < rank && i < 3; i++)
    said[6 + 3 * i] = sizes[i], said[7 + 3 * i] = i + 1 < rank ? strides[i] : 0, said[8 + 3 * i] = box[i];
  memcpy(map, said, sizeof *map < sizeof said ? sizeof *map : sizeof said);
  return CUDA_SUCCESS;
}
