/*
 * files:create|stat:SIZE:COUNT
 *
 * In a directory that the host shares under the tag `bench`: COUNT files of SIZE
 * bytes are made as tar makes them, 32 a directory, or asked for their state when
 * the guest knows none of them.
 */

#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SHARE "/share"
#define IN_A_DIRECTORY 32

/* Mounts what the host shares, with nothing in any of the guest's caches. */
static void enter(const char *place)
{
	mkdir(SHARE, 0755);
	if (mount("bench", SHARE, "virtiofs", 0, NULL) || chdir(SHARE) || chdir(place))
		fail("%s in the shared directory", place);
}

static void leave(void)
{
	if (chdir("/") || umount(SHARE))
		fail("umount");
}

/* A directory that nobody used before; what others left stays. */
static void make_place(char *place, size_t size)
{
	int number = 0;

	enter(".");
	do
		snprintf(place, size, "%d", number++);
	while (mkdir(place, 0755) && errno == EEXIST);
	if (chdir(place))
		fail("%s", place);
}

static void name(char *path, size_t size, const char *prefix, long number)
{
	snprintf(path, size, "%s%ld/%ld", prefix, number / IN_A_DIRECTORY, number);
}

/* The calls are those of GNU tar as root. */
static void create(const char *prefix, const char *data, long size, long count)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = 1 } };
	char path[64];

	for (long i = 0; i < count; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s%ld", prefix, i / IN_A_DIRECTORY);
		if (i % IN_A_DIRECTORY == 0 && mkdir(path, 0755))
			fail("%s", path);
		name(path, sizeof(path), prefix, i);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
		if (fd < 0 || write(fd, data, size) != size || futimens(fd, times) ||
		    fchown(fd, 0, 0) || fchmod(fd, 0644) || close(fd))
			fail("%s", path);
	}
}

static void ask(const char *prefix, long count)
{
	struct stat state;
	char path[64];

	for (long i = 0; i < count; i++) {
		name(path, sizeof(path), prefix, i);
		if (stat(path, &state))
			fail("%s", path);
	}
}

void files(const struct job *job, struct result *result)
{
	int is_stat = !strcmp(word(job, 1), "stat");
	long size = number(job, 2), count = number(job, 3);
	char *data = buffer(size), place[16];

	make_place(place, sizeof(place));
	create("warm", data, size, (count + 3) / 4);
	if (is_stat)
		create("made", data, size, count);
	leave();
	enter(place);
	ask("warm", (count + 3) / 4);
	begin();
	if (is_stat)
		ask("made", count);
	else
		create("made", data, size, count);
	end(result, count, (long long)count * size);
	leave();
}
