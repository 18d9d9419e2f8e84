/*
 * The smallest init, for boot benchmarks: says "init", then idles, or powers off
 * at once if its first argument is "poweroff" (`-- poweroff` on the kernel
 * command line). A page of code, so that what is measured is the boot.
 */

#include "tiny.h"

#include <asm/ioctls.h>
#include <linux/reboot.h>

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void run(long argc, char **argv, char **envp)
{
	(void)envp;
	system_call(__NR_write, 1, (long)"init\n", 5, 0);
	if (argc > 1 && same(argv[1], "poweroff")) {
		/* tcdrain: the line must be out before the machine is off. */
		system_call(__NR_ioctl, 1, TCSBRK, 1, 0);
		system_call(__NR_reboot, LINUX_REBOOT_MAGIC1,
			    LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0);
	}
	for (;;)
		system_call(__NR_pause, 0, 0, 0, 0);
}
