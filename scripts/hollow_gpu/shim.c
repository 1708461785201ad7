/* This library is loaded before libcudart and instead of libcuda. It simulates two H100s without memory.
   Copies and memsets work on host memory, which is zero at first. Kernels are counted and skipped. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#define __dv(v)
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties

typedef cudaError_t R;
enum { DEVICES = 2, MOST = 65536 };

/* The counts that the Python side reads. */
static long launches, copies, uploads, synchronisations, replays;
long hollow_launches(void) { return launches; }
long hollow_copies(void) { return copies; }
long hollow_uploads(void) { return uploads; }  /* copies from host memory during a capture */
long hollow_synchronisations(void) { return synchronisations; }  /* of the main thread */
long hollow_replays(void) { return replays; }

/* Capture: one at a time. A refused call invalidates it, as in CUDA. */
typedef struct { long nodes; } Graph;
static cudaStream_t capturing;
static unsigned long long capture_id;
static int invalid, mode;
static long captured;
long hollow_captured(void) { return captured; }

static void node(cudaStream_t s) { if (capturing && s == capturing) captured++; }
static R refused(void) {
  if (!capturing || mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  invalid = 1;
  return cudaErrorStreamCaptureUnsupported;
}
static R launch(cudaStream_t s) { launches++; node(s); return cudaSuccess; }
static R synchronise(void) {  /* only the main thread counts: it runs the training loop */
  if (syscall(SYS_gettid) == getpid()) synchronisations++;
  return refused();
}
void hollow_launch(cudaStream_t s) { node(s); }  /* called for Triton's kernels and the libraries' operators */

/* Kernels do nothing, so each replay of a graph that has work advances these counters instead. */
static long *counters[MOST];
static int counted;
void hollow_count_replays(long *counter) {
  for (int i = 0; i < counted; i++) if (counters[i] == counter) return;
  if (counted < MOST) counters[counted++] = counter;
}

/* Devices and streams. A stream's handle is its number. */
static _Thread_local int current;
R cudaGetDeviceCount(int *n) { *n = DEVICES; return 0; }
R cudaGetDevice(int *d) { *d = current; return 0; }
R cudaSetDevice(int d) { current = d; return d < DEVICES ? 0 : cudaErrorInvalidDevice; }
R cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
R cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
R cudaGetLastError(void) { return 0; }
R cudaPeekAtLastError(void) { return 0; }
R cudaDeviceGetStreamPriorityRange(int *l, int *g) { *l = 0; *g = -5; return 0; }
R cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { *v = 0; return 0; }
R cudaDeviceCanAccessPeer(int *can, int d, int peer) { *can = 1; return 0; }
R cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return 0; }
R cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "hollow H100");
  p->uuid.bytes[15] = d;
  p->major = 9; p->multiProcessorCount = 132; p->warpSize = 32;
  p->totalGlobalMem = 80ul << 30; p->l2CacheSize = 50 << 20;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 48 << 10; p->sharedMemPerBlockOptin = 227 << 10; p->sharedMemPerMultiprocessor = 228 << 10;
  return 0;
}
R cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
  static long n = 4096;
  *s = (cudaStream_t)(n += 64);
  return 0;
}
R cudaStreamQuery(cudaStream_t s) { return 0; }
R cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
R cudaStreamSynchronize(cudaStream_t s) { return synchronise(); }
R cudaDeviceSynchronize(void) { return synchronise(); }
R cudaEventSynchronize(cudaEvent_t e) { return synchronise(); }
R cudaEventQuery(cudaEvent_t e) { return 0; }
R cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = (cudaEvent_t)64; return 0; }
R cudaEventDestroy(cudaEvent_t e) { return 0; }
R cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
R cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return 0; }
R cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }
R cudaEventElapsedTime_v2(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

/* Memory: zeroed pages of the host, with their type and device. */
typedef struct { char *at; size_t size; enum cudaMemoryType type; int device; } Block;
static Block blocks[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static R take(void **p, size_t size, enum cudaMemoryType type) {
  *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*p == MAP_FAILED) return cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < MOST - 1 && blocks[i].at) i++;
  blocks[i] = (Block){*p, size, type, current};
  pthread_mutex_unlock(&lock);
  return 0;
}
static Block *block(const void *p) {
  for (int i = 0; i < MOST; i++)
    if (blocks[i].at && (char *)p >= blocks[i].at && (char *)p < blocks[i].at + blocks[i].size) return blocks + i;
  return 0;
}
static R give(void *p) {
  pthread_mutex_lock(&lock);
  Block *b = p ? block(p) : 0;
  if (b) { munmap(b->at, b->size); b->at = 0; }
  pthread_mutex_unlock(&lock);
  return 0;
}
R cudaMalloc(void **p, size_t n) { R r = refused(); return r ? r : take(p, n, cudaMemoryTypeDevice); }
R cudaFree(void *p) { R r = refused(); return r ? r : give(p); }
R cudaHostAlloc(void **p, size_t n, unsigned f) { return take(p, n, cudaMemoryTypeHost); }
R cudaFreeHost(void *p) { return give(p); }
R cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = 80ul << 30; return 0; }
R cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  pthread_mutex_lock(&lock);
  Block *b = block(p);
  if (b) { a->type = b->type; a->device = b->device; a->devicePointer = a->hostPointer = (void *)p; }
  pthread_mutex_unlock(&lock);
  return 0;
}
R cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) {
  copies++;
  if (capturing && t == capturing) { captured++; uploads += k == cudaMemcpyHostToDevice; }
  memcpy(d, s, n);
  return 0;
}
R cudaMemcpyPeerAsync(void *d, int dd, const void *s, int sd, size_t n, cudaStream_t t) {
  return cudaMemcpyAsync(d, s, n, cudaMemcpyDeviceToDevice, t);
}
R cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { copies++; memcpy(d, s, n); return synchronise(); }
R cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t t) { node(t); memset(d, v, n); return 0; }

/* Graphs. */
R cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { int old = mode; mode = *m; *m = old; return 0; }
R cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  capturing = s; mode = m; captured = invalid = 0; capture_id++;
  return 0;
}
R cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
  *g = 0;
  if (!capturing) return cudaErrorIllegalState;
  capturing = 0;
  if (invalid) return cudaErrorStreamCaptureInvalidated;
  Graph *graph = malloc(sizeof *graph);
  graph->nodes = captured;
  *g = (cudaGraph_t)graph;
  return 0;
}
static enum cudaStreamCaptureStatus status(cudaStream_t s) {
  if (!capturing || s != capturing) return cudaStreamCaptureStatusNone;
  return invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}
R cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = status(s); return 0; }
R cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g,
                           const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  *c = status(s);
  if (id) *id = capture_id;
  if (g) *g = (cudaGraph_t)64;
  if (n) *n = 0;
  return 0;
}
R cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *d, size_t *n) { *n = ((Graph *)g)->nodes; return 0; }
R cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
  Graph *graph = malloc(sizeof *graph);
  *graph = *(Graph *)g;
  *e = (cudaGraphExec_t)graph;
  return 0;
}
R cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
  return cudaGraphInstantiateWithFlags(e, g, f);
}
R cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  replays++;
  if (((Graph *)e)->nodes) for (int i = 0; i < counted; i++) ++*counters[i];
  return 0;
}
R cudaGraphDestroy(cudaGraph_t g) { free(g); return 0; }
R cudaGraphExecDestroy(cudaGraphExec_t e) { R r = refused(); if (!r) free(e); return r; }

/* Kernels. */
R cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->binaryVersion = a->ptxVersion = 90;
  return 0;
}
R cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
R cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 2; return 0; }
R __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (void *)f; return 0; }
R cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { return launch(t); }
R __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { return launch(t); }
R cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { return launch(c->stream); }

/* libcuda: Triton must find these symbols. A call returns 100, CUDA_ERROR_NO_DEVICE. */
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 0; return 0; }
#define NO(name) int name() { return 100; }
NO(cuCtxGetCurrent) NO(cuCtxSetCurrent) NO(cuDeviceGet) NO(cuDeviceGetAttribute) NO(cuDevicePrimaryCtxRetain)
NO(cuFuncGetAttribute) NO(cuFuncSetAttribute) NO(cuFuncSetCacheConfig) NO(cuGetErrorString)
NO(cuLaunchCooperativeKernel) NO(cuLaunchKernel) NO(cuLinkAddData_v2) NO(cuLinkComplete) NO(cuLinkCreate_v2)
NO(cuModuleGetFunction) NO(cuModuleLoad) NO(cuModuleLoadData) NO(cuModuleLoadDataEx) NO(cuModuleUnload)
NO(cuOccupancyMaxActiveBlocksPerMultiprocessor) NO(cuPointerGetAttribute) NO(cuTensorMapEncodeTiled)
