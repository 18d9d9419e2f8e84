/*
 * The guest's side of the I/O benchmark, as its init: does the jobs that `jobs=`
 * on the kernel command line names, comma-separated, says for each
 *
 *     io JOB OPERATIONS BYTES NANOSECONDS
 *
 * then `io done`, and idles. `io failed ...` ends the machine.
 *
 * The measured part of a job begins and ends with a CPUID instruction whose leaf
 * nobody else asks for. Such an exit needs no privilege and does not reach user
 * space; a trace of KVM shows by it which exits belong to the job.
 */

#define _GNU_SOURCE
#include "io.h"

#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define LEAF_BEGIN 0x0b0b0001
#define LEAF_END 0x0b0b0002

static const char *current = "start";
static long long started;

static void mark(unsigned int leaf)
{
	unsigned int a, b, c, d;

	__cpuid_count(leaf, 0, a, b, c, d);
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

void begin(void)
{
	mark(LEAF_BEGIN);
	started = now();
}

void end(struct result *result, long operations, long long bytes)
{
	result->nanoseconds = now() - started;
	mark(LEAF_END);
	result->operations = operations;
	result->bytes = bytes;
}

void fail(const char *format, ...)
{
	int error = errno;
	va_list values;

	printf("io failed: %s: ", current);
	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	printf(": %s\n", strerror(error));
	tcdrain(1);
	/* Without a message from the kernel, which would push ours out of sight. */
	reboot(RB_AUTOBOOT);
	_exit(1);
}

const char *word(const struct job *job, int number)
{
	if (number >= job->count)
		fail("word %d is missing", number);
	return job->words[number];
}

long number(const struct job *job, int number)
{
	long value = strtol(word(job, number), NULL, 10);

	if (value <= 0)
		fail("word %d is no number", number);
	return value;
}

char *buffer(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (memory == MAP_FAILED)
		fail("%zu bytes", size);
	memset(memory, 0x5a, size);
	return memory;
}

static struct job parse(char *text)
{
	struct job job = { 0 };
	char *part;

	while (job.count < 8 && (part = strsep(&text, ":")))
		job.words[job.count++] = part;
	return job;
}

static void run(const struct job *job, struct result *result)
{
	const char *kind = word(job, 0);

	if (!strcmp(kind, "block"))
		block(job, result);
	else if (!strcmp(kind, "files"))
		files(job, result);
	else if (!strcmp(kind, "stream"))
		stream(job, result);
	else if (!strcmp(kind, "packets"))
		packets(job, result);
	else
		fail("no such job");
}

int main(void)
{
	char *jobs = getenv("jobs"), *told;

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/dev", 0755);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL))
		fail("/dev");
	while (jobs && (told = strsep(&jobs, ","))) {
		struct result result = { 0 };
		struct job job;

		current = told;
		job = parse(strdup(told));
		run(&job, &result);
		printf("io %s %ld %lld %lld\n", told, result.operations,
		       result.bytes, result.nanoseconds);
		/* The line's last byte must not leave during the next job. */
		tcdrain(1);
	}
	printf("io done\n");
	for (;;)
		pause();
}
