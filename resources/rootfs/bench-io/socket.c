/*
 * stream:tcp|vsock:echo|send|receive:SIZE:COUNT
 * packets:send|receive:SIZE:COUNT
 *
 * A stream does COUNT round trips or transfers of SIZE bytes with a server on the
 * host; a transfer to it has ended when it says so. Packets are UDP datagrams that
 * go in bursts, each of which the other side answers, so that none is lost.
 */

#include "io.h"

#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define PORT 5000
#define OURS "10.66.0.2"
#define THEIRS "10.66.0.1"
#define BURST 64

/* What a stream's server is asked for; it does one after the other. */
struct request {
	uint32_t what, size;
	uint64_t count;
};

enum { ECHO = 'e', SEND = 's', RECEIVE = 'r' };

/* The first byte of a datagram says what the server is to do with it. */
enum { IGNORE = 'i', ANSWER = 'a', BURST_BACK = 'b' };

static struct sockaddr_in internet(const char *address)
{
	struct sockaddr_in internet = {
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
		.sin_addr.s_addr = inet_addr(address),
	};
	return internet;
}

static void change_interface(int fd, unsigned long what, struct ifreq *request)
{
	strcpy(request->ifr_name, "eth0");
	if (ioctl(fd, what, request))
		fail("eth0");
}

static void network_up(void)
{
	static int is_up;
	struct sockaddr_in address = internet(OURS), mask = internet("255.255.255.0");
	struct ifreq request = { 0 };
	int fd;

	if (is_up)
		return;
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	memcpy(&request.ifr_addr, &address, sizeof(address));
	change_interface(fd, SIOCSIFADDR, &request);
	memcpy(&request.ifr_netmask, &mask, sizeof(mask));
	change_interface(fd, SIOCSIFNETMASK, &request);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	change_interface(fd, SIOCSIFFLAGS, &request);
	close(fd);
	is_up = 1;
}

static int connect_to(const void *address, socklen_t length, int type)
{
	int fd = socket(((const struct sockaddr *)address)->sa_family, type, 0);

	if (fd < 0 || connect(fd, address, length))
		fail("connect");
	return fd;
}

static int connect_stream(const char *kind)
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = PORT,
	};
	struct sockaddr_in server = internet(THEIRS);
	int fd, on = 1;

	if (!strcmp(kind, "vsock"))
		return connect_to(&host, sizeof(host), SOCK_STREAM);
	network_up();
	fd = connect_to(&server, sizeof(server), SOCK_STREAM);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static void write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t done = write(fd, data, size);

		if (done <= 0)
			fail("write");
		data += done;
		size -= done;
	}
}

static void read_all(int fd, char *data, size_t size)
{
	while (size > 0) {
		ssize_t done = read(fd, data, size);

		if (done <= 0)
			fail("read");
		data += done;
		size -= done;
	}
}

static void transfer(int fd, int what, char *data, long size, long count)
{
	struct request request = { what, size, count };

	write_all(fd, (char *)&request, sizeof(request));
	for (long i = 0; i < count; i++) {
		if (what != RECEIVE)
			write_all(fd, data, size);
		if (what != SEND)
			read_all(fd, data, size);
	}
	if (what == SEND)
		read_all(fd, data, 1);
}

void stream(const struct job *job, struct result *result)
{
	int what = word(job, 2)[0];
	long size = number(job, 3), count = number(job, 4);
	int fd = connect_stream(word(job, 1));
	char *data = buffer(size);

	transfer(fd, what, data, size, (count + 3) / 4);
	begin();
	transfer(fd, what, data, size, count);
	end(result, count, (long long)count * size);
	close(fd);
}

static void bursts(int fd, int receive, char *data, long size, long count)
{
	for (long i = 1; i <= count; i++) {
		int last = i % BURST == 0;

		if (receive) {
			data[0] = BURST_BACK;
			if (i % BURST == 1 && send(fd, data, size, 0) != size)
				fail("send");
		} else {
			data[0] = last ? ANSWER : IGNORE;
			if (send(fd, data, size, 0) != size)
				fail("send");
		}
		if ((receive || last) && recv(fd, data, size, 0) != size)
			fail("recv");
	}
}

void packets(const struct job *job, struct result *result)
{
	int receive = !strcmp(word(job, 1), "receive");
	long size = number(job, 2), count = number(job, 3) / BURST * BURST;
	struct sockaddr_in server = internet(THEIRS);
	struct timeval patience = { .tv_sec = 1 };
	char *data = buffer(size);
	int fd;

	network_up();
	fd = connect_to(&server, sizeof(server), SOCK_DGRAM);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	bursts(fd, receive, data, size, 2 * BURST);
	begin();
	bursts(fd, receive, data, size, count);
	end(result, count, (long long)count * size);
	close(fd);
}
