/*
 * The smallest init, for boot benchmarks: says "init", then idles, or powers off
 * at once if its first argument is "poweroff" (`-- poweroff` on the kernel
 * command line). No libc: a page of code, so that what is measured is the boot.
 */

#include <asm/ioctls.h>
#include <asm/unistd.h>
#include <linux/reboot.h>

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

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* stack: what the kernel leaves there: argc, argv[0], ..., argv[argc - 1], 0 */
__attribute__((noreturn, used)) static void run(const long *stack)
{
	const char *const *argv = (const char *const *)(stack + 1);

	system_call(__NR_write, 1, (long)"init\n", 5, 0);
	if (stack[0] > 1 && same(argv[1], "poweroff")) {
		/* tcdrain: the line must be out before the machine is off. */
		system_call(__NR_ioctl, 1, TCSBRK, 1, 0);
		system_call(__NR_reboot, LINUX_REBOOT_MAGIC1,
			    LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
	}
	for (;;)
		system_call(__NR_pause, 0, 0, 0, 0);
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call run\n");
