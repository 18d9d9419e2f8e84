/*
 * What a program of a few hundred bytes needs instead of a C library: a system
 * call, and a start that hands argc, argv and envp to run().
 */

#include <asm/unistd.h>

static long system_call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

/* The kernel leaves on the stack: argc, argv..., 0, envp..., 0. */
__attribute__((noreturn, used)) static void run(long argc, char **argv,
						char **envp);

__asm__(".globl _start\n"
	"_start:\n"
	"	mov (%rsp), %rdi\n"
	"	lea 8(%rsp), %rsi\n"
	"	lea 16(%rsp,%rdi,8), %rdx\n"
	"	and $-16, %rsp\n"
	"	call run\n");
