#pragma once

namespace megatron {

// Lets the C library keep memory that is freed instead of giving it back to the system: a training step frees and takes
// the same big tensors again and again, and each page taken anew is a page fault. False where it cannot be asked.
bool keep_memory();

}  // namespace megatron
