/* What the parts of bench-io share. */

#ifndef IO_H
#define IO_H

#include <stddef.h>

/* What a job did. */
struct result {
	long operations;
	long long bytes;
	long long nanoseconds;
};

/*
 * A job's words, taken apart at the colons. Asking for one that is not there
 * fails the job.
 */
struct job {
	int count;
	const char *words[8];
};

const char *word(const struct job *job, int number);
long number(const struct job *job, int number);

/* The measured part of a job lies between these two, once a job. */
void begin(void);
void end(struct result *result, long operations, long long bytes);

/* Says what failed, with errno, and ends the machine. */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);

/* Memory that is there, page-aligned and not zero. */
char *buffer(size_t size);

/* The jobs, by their first word. */
void block(const struct job *job, struct result *result);
void files(const struct job *job, struct result *result);
void packets(const struct job *job, struct result *result);
void stream(const struct job *job, struct result *result);

#endif
