/* A disk that is full while a file is there: what would make a file of a Postgres database longer fails as it does on a full
 * disk, with ENOSPC, and what overwrites goes on. Loaded before the C library (LD_PRELOAD). A real file system of a few
 * megabytes would want the right to mount, which neither an ordinary user nor a container has everywhere. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of a Postgres only, and noted at its start: later it writes what it does over its own name. */
static const char *flag;

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("FULL_DISK");
    if (named && !strcmp(program_invocation_short_name, "postgres"))
        flag = strdup(named);
}

static int full(int fd, off_t end) {
    char link[64], path[4096];
    struct stat file;
    int before = errno;
    if (!flag || access(flag, F_OK)) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0 || fstat(fd, &file) || end <= file.st_size)
        return 0;
    path[length] = 0;
    /* Tables and indices. Where the log of its own has no room, Postgres ends: that is another fault. */
    return strstr(path, "/base/") != NULL;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define NO_ROOM(fd, end) if (full(fd, end)) { errno = ENOSPC; return -1; }

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    NO_ROOM(fd, at + (off_t)count)
    return REAL(pwrite)(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
    NO_ROOM(fd, at + (off_t)count)
    return REAL(pwrite64)(fd, bytes, count, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    off_t end = at;
    for (int i = 0; i < count; i++)
        end += (off_t)parts[i].iov_len;
    NO_ROOM(fd, end)
    return REAL(pwritev)(fd, parts, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) {
    off_t end = at;
    for (int i = 0; i < count; i++)
        end += (off_t)parts[i].iov_len;
    NO_ROOM(fd, end)
    return REAL(pwritev64)(fd, parts, count, at);
}

int posix_fallocate(int fd, off_t at, off_t length) {
    return full(fd, at + length) ? ENOSPC : REAL(posix_fallocate)(fd, at, length);
}

int posix_fallocate64(int fd, off_t at, off_t length) {
    return full(fd, at + length) ? ENOSPC : REAL(posix_fallocate64)(fd, at, length);
}
