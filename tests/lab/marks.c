/* A library that leaves a mark, with the name of the program, wherever it is loaded. */
#include <stdio.h>
#include <unistd.h>
#include <fcntl.h>
__attribute__((constructor)) static void loaded(void) {
  char self[4096] = "", path[64];
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) return;
  snprintf(path, sizeof path, "/run/evil/marks/%d", getpid());
  int fd = open(path, O_CREAT | O_WRONLY, 0666);
  if (fd >= 0) { write(fd, self, sizeof self); close(fd); }
}
void gconv(void) {} void gconv_init(void) {}
