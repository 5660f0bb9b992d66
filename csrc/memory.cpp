#include "memory.h"

#if defined(__linux__)
#include <features.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>

#include <climits>
#endif

namespace megatron {

bool keep_memory() {
#if defined(__GLIBC__)
    // No block by mmap of its own, which free would unmap; and the heap's end is not given back.
    return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, INT_MAX) == 1 && mallopt(M_TOP_PAD, 64 << 20) == 1;
#else
    return false;
#endif
}

}  // namespace megatron
