/*
 * interruptible APPLET ARGUMENT...: becomes that busybox applet, with Ctrl-C and
 * Ctrl-\ working. A shell ignores both signals in what it starts by `&`, no
 * program started from there can catch them again, and init has to use `&`.
 */

#include "tiny.h"

#include <asm/signal.h>

static void run(long argc, char **argv, char **envp)
{
	/* All zero: the default action. Spelled out, as libc's struct differs. */
	const long by_default[4] = { 0 };

	(void)argc;
	system_call(__NR_rt_sigaction, SIGINT, (long)by_default, 0, 8);
	system_call(__NR_rt_sigaction, SIGQUIT, (long)by_default, 0, 8);
	system_call(__NR_execve, (long)"/bin/busybox", (long)(argv + 1),
		    (long)envp, 0);
	for (;;)
		system_call(__NR_exit, 127, 0, 0, 0);
}
