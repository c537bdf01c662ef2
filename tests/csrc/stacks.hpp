// Switching stacks within one thread, from which fibers are built.
//
// On x86-64 a switch is a few instructions; elsewhere it uses the C library, with a system call each time.
// `change_stack` notifies the address sanitizer of each switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer in *from, and continues where `to` was saved.
extern "C" void art_change_stack_pointer(void** from, void* to);
asm(R"(
.text
.type art_change_stack_pointer, @function
art_change_stack_pointer:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size art_change_stack_pointer, .-art_change_stack_pointer
)");
#else
#include <ucontext.h>
#endif

namespace cuda_on_host {

// A saved position. `bottom` and `size` describe its stack.
struct Place {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // of the address sanitizer
  const void* bottom = nullptr;
  size_t size = 0;
};

// A position at the start of `function`, which never returns, with a separate stack.
inline void begin(Place& place, char* stack, size_t size, void (*function)()) {
  place.fake_stack = nullptr;
  place.bottom = stack;
  place.size = size;
#if defined(__x86_64__)
  // At function entry, the stack pointer is 8 off a multiple of 16, because of the return address.
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) / 16 * 16) - 2;
  top[0] = reinterpret_cast<void*>(function);
  top[1] = nullptr;
  for (int kept = 1; kept <= 6; ++kept) top[-kept] = nullptr;
  place.stack_pointer = top - 6;
#else
  getcontext(&place.context);
  place.context.uc_stack.ss_sp = stack;
  place.context.uc_stack.ss_size = size;
  place.context.uc_link = nullptr;
  makecontext(&place.context, function, 0);
#endif
}

// Must be called first by a function that a position starts with; `from` is the position that switched there.
inline void arrive([[maybe_unused]] void* fake_stack, [[maybe_unused]] Place& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &from.bottom, &from.size);
#endif
}

// Continues at `to`; returns when something switches to `from`. `last`: nothing ever will.
inline void change_stack(Place& from, Place& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__x86_64__)
  art_change_stack_pointer(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrive(from.fake_stack, to);
}

}  // namespace cuda_on_host
